//! Configurations of extensions that come untyped, as EnvoyFilters have them: a `TypedStruct` is the message that it names
//! (Envoy `Utility::translateOpaqueConfig`).
use std::sync::LazyLock;

use lateen_proto::json::{Codec, InvalidJson, Misfit, Tree};
use lateen_proto::{Any, any, udpa, xds};
use prost_types::Struct;

use super::common::{open, struct_json};
use super::invalid::{Invalid, Result};
use super::{istio, left_out};

/// For whom no `TypedStruct` is sent, none is made: it keeps the shapes that it has met.
static CODEC: LazyLock<Codec> = LazyLock::new(Codec::new);

const VALUE: &str = "typed_config.value";

/// The message inside of a `TypedStruct`; anything else as it is.
pub(crate) fn typed(config: Any) -> Result<Any> {
    let Some((type_url, value)) = typed_struct(&config)? else { return Ok(config) };
    let name = any::name_of(&type_url);
    // Istio has names for fields of its own filters that the messages do not have.
    if istio::is_own(name) {
        return Ok(config);
    }
    let json = struct_json(&value);
    let place = |misfit: &Misfit| if misfit.path.is_empty() { VALUE.to_owned() } else { format!("{VALUE}.{}", misfit.shown()) };
    match CODEC.encode_known(name, &Tree::from(&json)) {
        Ok((value, unknown)) => {
            // Envoy warns of them too: whoever sends them may know a newer message.
            for misfit in unknown {
                left_out::note(Invalid::field(&place(&misfit), format!("{}; it is left out", misfit.reason)));
            }
            Ok(Any { type_url, value })
        }
        // Whoever is asked for it says what there is instead.
        Err(InvalidJson::UnknownType(_)) => Ok(Any { type_url, value: Vec::new() }),
        Err(InvalidJson::Misfit(misfit)) => Err(Invalid::field(&place(&misfit), misfit.reason)),
        Err(other) => Err(Invalid::field(VALUE, other.to_string())),
    }
}

/// The type that a `TypedStruct` names, and its fields.
pub(crate) fn typed_struct(config: &Any) -> Result<Option<(String, Struct)>> {
    let (type_url, value) = if any::is::<udpa::r#type::v1::TypedStruct>(config) {
        let udpa::r#type::v1::TypedStruct { type_url, value } = open(config)?;
        (type_url, value)
    } else if any::is::<xds::r#type::v3::TypedStruct>(config) {
        let xds::r#type::v3::TypedStruct { type_url, value } = open(config)?;
        (type_url, value)
    } else {
        return Ok(None);
    };
    Ok(Some((type_url, value.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use lateen_proto::envoy::config::listener::v3 as listener;
    use lateen_proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;

    use super::*;

    /// What a bootstrap with such a configuration has.
    fn any_of(text: &str) -> Any {
        let text = format!(
            "{{static_resources: {{listeners: [{{name: l, filter_chains: [{{filters: [{{name: f, typed_config: {text}}}]}}]}}]}}}}"
        );
        let listener = crate::bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
        let listener: listener::Listener = any::open(&listener).unwrap();
        match listener.filter_chains[0].filters[0].config_type.clone() {
            Some(listener::filter::ConfigType::TypedConfig(config)) => config,
            other => panic!("{other:?}"),
        }
    }

    fn with(kind: &str, url: &str, value: &str) -> Result<Any> {
        typed(any_of(&format!("{{'@type': type.googleapis.com/{kind}, type_url: {url}, value: {value}}}")))
    }

    const KINDS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
    const LIMIT: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

    #[test]
    fn fields_become_the_message_that_is_named() {
        for kind in KINDS {
            let value = "{stat_prefix: s, tokenBucket: {max_tokens: 10, tokens_per_fill: 10, fill_interval: 60s}, \
                filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}, vh_rate_limits: INCLUDE, \
                response_headers_to_add: [{append: false, header: {key: x, value: 'true'}}]}";
            let made: LocalRateLimit = any::open(&with(kind, LIMIT, value).unwrap()).unwrap();
            assert_eq!((&*made.stat_prefix, made.token_bucket.map(|b| b.max_tokens)), ("s", Some(10)));
            assert_eq!((made.vh_rate_limits, made.response_headers_to_add.len()), (1, 1));
        }
        let typed_already = any_of(&format!("{{'@type': {LIMIT}, stat_prefix: s}}"));
        assert_eq!(typed(typed_already.clone()), Ok(typed_already));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_path() {
        let refused = |value: &str| with(KINDS[0], LIMIT, value).unwrap_err().to_string();
        let deep = refused("{token_bucket: {max_tokens: many}, tokens: {}}");
        assert!(deep.starts_with("typed_config.value.token_bucket.max_tokens: "), "{deep}");
    }

    #[test]
    fn enums_may_be_in_any_case_and_what_is_unknown_is_left_out_and_told() {
        left_out::take();
        let value = "{stat_prefix: s, vh_rate_limits: include, tokens: {}, token_bucket: {max_tokens: 1, burst: 2}, \
            enable_x_ratelimit_headers: DRAFT_VERSION_99}";
        let made: LocalRateLimit = any::open(&with(KINDS[0], LIMIT, value).unwrap()).unwrap();
        assert_eq!((made.vh_rate_limits, made.token_bucket.map(|b| b.max_tokens)), (1, Some(1)));
        assert_eq!(made.enable_x_ratelimit_headers, 0);
        let mut told: Vec<String> = left_out::take().iter().map(ToString::to_string).collect();
        told.sort_unstable();
        let expected = [
            "enable_x_ratelimit_headers: `DRAFT_VERSION_99` is not one of OFF, DRAFT_VERSION_03; it is left out",
            "token_bucket.burst: is not a field of TokenBucket; it is left out",
            "tokens: is not a field of LocalRateLimit; it is left out",
        ];
        assert_eq!(told, expected.map(|what| format!("typed_config.value.{what}")));
    }

    #[test]
    fn istios_own_stay_as_they_are_and_unknown_types_keep_their_name() {
        let stats = "type.googleapis.com/stats.PluginConfig";
        assert_eq!(any::name_of(&with(KINDS[0], stats, "{anything: 1}").unwrap().type_url), KINDS[0]);
        assert_eq!(with(KINDS[1], "type.googleapis.com/no.Such", "{a: 1}").unwrap().type_url, "type.googleapis.com/no.Such");
    }
}
