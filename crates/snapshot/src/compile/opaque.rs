//! Configurations of extensions that come untyped, as EnvoyFilters have them: a `TypedStruct` is the message that it names
//! (Envoy `Utility::translateOpaqueConfig`).
use lateen_proto::json::{Codec, InvalidJson, Tree};
use lateen_proto::{Any, any, udpa, xds};
use prost_types::Struct;

use super::common::{open, struct_json};
use super::invalid::{Invalid, Result};
use super::istio;

/// The message inside of a `TypedStruct`; anything else as it is.
pub(crate) fn typed(config: Any) -> Result<Any> {
    let Some((type_url, value)) = typed_struct(&config)? else { return Ok(config) };
    let name = any::name_of(&type_url);
    // Istio has names for fields of its own filters that the messages do not have.
    if istio::is_own(name) {
        return Ok(config);
    }
    let json = struct_json(&value);
    match Codec::new().encode(name, &Tree::from(&json)) {
        Ok(value) => Ok(Any { type_url, value }),
        // Whoever is asked for it says what there is instead.
        Err(InvalidJson::UnknownType(_)) => Ok(Any { type_url, value: Vec::new() }),
        Err(InvalidJson::Misfit(misfit)) if !misfit.path.is_empty() => {
            Err(Invalid::field(&format!("typed_config.value.{}", misfit.shown()), misfit.reason))
        }
        Err(other) => Err(Invalid::field("typed_config.value", other.to_string())),
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
        assert!(refused("{stat_prefix: s, tokens: {}}").starts_with("typed_config.value.tokens: "), "{}", refused("{tokens: {}}"));
        let deep = refused("{token_bucket: {max_tokens: many}}");
        assert!(deep.starts_with("typed_config.value.token_bucket.max_tokens: "), "{deep}");
    }

    #[test]
    fn istios_own_stay_as_they_are_and_unknown_types_keep_their_name() {
        let stats = "type.googleapis.com/stats.PluginConfig";
        assert_eq!(any::name_of(&with(KINDS[0], stats, "{anything: 1}").unwrap().type_url), KINDS[0]);
        assert_eq!(with(KINDS[1], "type.googleapis.com/no.Such", "{a: 1}").unwrap().type_url, "type.googleapis.com/no.Such");
    }
}
