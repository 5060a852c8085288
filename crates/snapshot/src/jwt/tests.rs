use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lateen_identity::token::TokenIssuer;

use super::*;

const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn issuer(name: &str) -> TokenIssuer {
    TokenIssuer::generate(name).unwrap()
}

fn provider(issuer: &TokenIssuer) -> Provider {
    Provider {
        issuer: Some(issuer.issuer().into()),
        audiences: vec!["api".into()],
        subjects: None,
        max_lifetime: None,
        keys: Keys::Local(KeySet::parse(&issuer.jwks()).unwrap()),
        forward: false,
        headers: Vec::new(),
        parameters: Vec::new(),
        cookies: Vec::new(),
        payload_header: Some(HeaderName::from_static("x-payload")),
        pad_payload_header: false,
        payload_key: Some("payload".into()),
        header_key: None,
        failure_key: None,
        alone: true,
        space_delimited: vec!["sub".into()],
        clock_skew: 60,
        claim_headers: vec![ClaimHeader { name: HeaderName::from_static("x-sub"), path: vec!["sub".into()] }],
        clear_route_cache: false,
    }
}

/// The outcome, and what the request looks like afterwards.
fn check(
    requirement: &Requirement,
    path: &str,
    headers: &[(&'static str, &str)],
) -> (Result<(), JwtFault>, HeaderMap, Metadata, Option<String>) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let mut metadata = Metadata::default();
    let mut request = JwtRequest { headers: &mut map, path, metadata: &mut metadata, now: NOW, new_path: None, clear_route: false };
    let result = requirement.check(&mut request);
    let new_path = request.new_path;
    (result, map, metadata, new_path)
}

fn outcome(requirement: &Requirement, token: &str) -> Result<(), JwtFault> {
    check(requirement, "/", &[("authorization", &format!("Bearer {token}"))]).0
}

fn one(provider: Provider) -> Requirement {
    Requirement::Provider(Arc::new(provider), Vec::new())
}

#[test]
fn a_good_token_is_passed_on_as_the_provider_says() {
    let issuer = issuer("me");
    let token = issuer.issue("ns", "app", "https://api/", HOUR, at(NOW)).unwrap();
    let forged = [("authorization", format!("Bearer {token}")), ("x-sub", "admin".to_owned()), ("x-payload", "lie".to_owned())];
    let headers: Vec<(&'static str, &str)> = forged.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let (result, map, metadata, _) = check(&one(provider(&issuer)), "/", &headers);
    assert_eq!(result, Ok(()));
    assert_eq!(map.get("x-sub").unwrap(), "system:serviceaccount:ns:app");
    assert_eq!(map.get_all("x-sub").iter().count(), 1, "what the caller said of itself is gone");
    assert_eq!(map.get("x-payload").unwrap().to_str().unwrap(), token.split('.').nth(1).unwrap());
    assert!(!map.contains_key("authorization"), "the token is not forwarded");
    let path = ["payload".into(), "kubernetes.io".into(), "namespace".into()];
    assert_eq!(metadata.get(NAMESPACE, &path).unwrap(), "ns");
    assert!(metadata.get(NAMESPACE, &["payload".into(), "sub".into()]).unwrap().is_array());
}

#[test]
fn wrong_tokens_are_refused_with_envoys_reasons() {
    let issuer = issuer("me");
    let requirement = one(provider(&issuer));
    let issue = |audience: &str, at_second: u64| issuer.issue("ns", "app", audience, HOUR, at(at_second)).unwrap();
    assert_eq!(check(&requirement, "/", &[]).0, Err(JwtFault::Missing));
    assert_eq!(outcome(&requirement, &issue("api", NOW - 3600 - 60)), Ok(()), "within the skew");
    assert_eq!(outcome(&requirement, &issue("api", NOW - 3600 - 61)), Err(JwtFault::Expired));
    assert_eq!(outcome(&requirement, &issue("api", NOW + 61)), Err(JwtFault::NotYetValid));
    assert_eq!(outcome(&requirement, &issue("other", NOW)), Err(JwtFault::Audience));
    assert_eq!(outcome(&requirement, "a.b"), Err(JwtFault::BadFormat));
    assert_eq!(outcome(&requirement, ""), Err(JwtFault::BadFormat));
    let stranger = self::issuer("other");
    assert_eq!(outcome(&requirement, &stranger.issue("ns", "app", "api", HOUR, at(NOW)).unwrap()), Err(JwtFault::UnknownIssuer));
    let impostor = self::issuer("me");
    assert_eq!(outcome(&requirement, &impostor.issue("ns", "app", "api", HOUR, at(NOW)).unwrap()), Err(JwtFault::NoKey));
}

#[test]
fn unsigned_symmetric_and_changed_tokens_are_refused() {
    let issuer = issuer("me");
    let requirement = one(provider(&issuer));
    let good = issuer.issue("ns", "app", "api", HOUR, at(NOW)).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let b64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for (algorithm, fault) in [
        (r#""none""#, JwtFault::Algorithm),
        (r#""None""#, JwtFault::Algorithm),
        ("7", JwtFault::AlgorithmMissing),
        (r#""HS256""#, JwtFault::NoKey),
        (r#""HS512""#, JwtFault::NoKey),
        (r#""ES512""#, JwtFault::NoKey),
        (r#""ES256","kid":1"#, JwtFault::KeyId),
    ] {
        let header = b64(&format!(r#"{{"alg":{algorithm}}}"#));
        for signature in ["", parts[2]] {
            assert_eq!(outcome(&requirement, &format!("{header}.{}.{signature}", parts[1])), Err(fault), "{algorithm}");
        }
    }
    for (claims, text) in [
        (r#"{"iss":1}"#, "Jwt payload [iss] field is not a string"),
        (r#"{"sub":[]}"#, "Jwt payload [sub] field is not a string"),
        (r#"{"iat":"1"}"#, "Jwt payload [iat] field is not an integer"),
        (r#"{"exp":-1}"#, "Jwt payload [exp] field is not a positive 64 bit integer"),
        (r#"{"jti":{}}"#, "Jwt payload [jti] field is not a string"),
        (r#"{"aud":["a",1]}"#, "Jwt payload [aud] field is not a string or string list"),
    ] {
        let fault = outcome(&requirement, &format!("{}.{}.{}", parts[0], b64(claims), parts[2])).unwrap_err();
        assert_eq!(fault.text(), text);
    }
    assert_eq!(outcome(&requirement, &format!("{}.{}.a+b", parts[0], parts[1])), Err(JwtFault::SignatureBase64));
    let claims = b64(&format!(r#"{{"iss":"me","aud":"api","sub":"admin","exp":{}}}"#, NOW + 60));
    assert_eq!(outcome(&requirement, &format!("{}.{claims}.{}", parts[0], parts[2])), Err(JwtFault::Signature));
    let kid = b64(r#"{"alg":"ES256","kid":"../../dev/null"}"#);
    assert_eq!(outcome(&requirement, &format!("{kid}.{}.{}", parts[1], parts[2])), Err(JwtFault::NoKey));
    assert_eq!(outcome(&requirement, &"x".repeat(MAX_TOKEN_BYTES + 1)), Err(JwtFault::BadFormat));
}

#[test]
fn what_is_nested_without_end_is_no_json() {
    let issuer = issuer("me");
    let requirement = one(provider(&issuer));
    let good = issuer.issue("ns", "app", "api", HOUR, at(NOW)).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        // As deep as the largest token that is read can be.
        let depth = MAX_TOKEN_BYTES * 3 / 4 / (open.len() + close.len() + 1) - 20;
        let deep = format!("{}0{}", open.repeat(depth), close.repeat(depth));
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"ES256","a":{deep}}}"#));
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"me","a":{deep}}}"#));
        let in_header = format!("{header}.{}.AAAA", parts[1]);
        let in_claims = format!("{}.{claims}.AAAA", parts[0]);
        assert!(in_claims.len() <= MAX_TOKEN_BYTES && in_header.len() <= MAX_TOKEN_BYTES);
        assert_eq!(outcome(&requirement, &in_header), Err(JwtFault::HeaderJson), "{depth}");
        assert_eq!(outcome(&requirement, &in_claims), Err(JwtFault::PayloadJson), "{depth}");
        // Keys come from a server, and may be larger.
        let keys = format!("{}0{}", open.repeat(200_000), close.repeat(200_000));
        for text in [keys.clone(), format!(r#"{{"keys":{keys}}}"#), format!(r#"{{"keys":[{keys}]}}"#)] {
            assert!(KeySet::parse(&text).is_err());
        }
    }
}

#[test]
fn why_a_token_was_refused_is_told_by_the_provider_that_it_was_for() {
    let (a, b) = (issuer("a"), issuer("b"));
    let told = |requirement: &Requirement, token: Option<&str>, key: &str| {
        let bearer = token.map(|t| format!("Bearer {t}"));
        let headers: Vec<(&'static str, &str)> = bearer.iter().map(|b| ("authorization", b.as_str())).collect();
        let (_, _, metadata, _) = check(requirement, "/", &headers);
        metadata.get(NAMESPACE, &[key.into()]).map(|told| told.to_string())
    };
    let telling = |issuer: &TokenIssuer, key: &str, alone| Provider { failure_key: Some(key.into()), alone, ..provider(issuer) };
    let token = |issuer: &TokenIssuer, second| issuer.issue("ns", "app", "api", HOUR, at(second)).unwrap();
    let only = one(telling(&a, "a", true));
    let text = |code: u32, message: &str| Some(format!(r#"{{"code":{code},"message":"{message}"}}"#));
    assert_eq!(told(&only, Some(&token(&a, NOW)), "a"), None);
    assert_eq!(told(&only, Some(&token(&a, NOW - 7200)), "a"), text(3, "Jwt is expired"));
    assert_eq!(told(&only, Some(&token(&b, NOW)), "a"), text(24, "Jwt issuer is not configured"));
    assert_eq!(told(&only, None, "a"), text(1, "Jwt is missing"));
    let both = Requirement::AllowMissingOrFailed(vec![Arc::new(telling(&a, "a", false)), Arc::new(telling(&b, "b", false))]);
    let old = token(&b, NOW - 7200);
    assert_eq!((told(&both, Some(&old), "a"), told(&both, Some(&old), "b")), (None, text(3, "Jwt is expired")));
    assert_eq!((told(&both, None, "a"), told(&both, None, "b")), (None, None));
}

#[test]
fn a_provider_vouches_for_some_subjects_and_for_a_while() {
    let issuer = issuer("me");
    let token = |ttl: u64| issuer.issue("ns", "app", "api", Duration::from_secs(ttl), at(NOW)).unwrap();
    let within = |most| one(Provider { max_lifetime: Some(Duration::from_secs(most)), ..provider(&issuer) });
    assert_eq!((outcome(&within(3600), &token(3600)), outcome(&within(3600), &token(3601))), (Ok(()), Err(JwtFault::Signature)));
    let prefix = |text: &str| Some(StringMatcher::Prefix { text: text.into(), ignore_case: false });
    let about = |text: &str| one(Provider { subjects: prefix(text), ..provider(&issuer) });
    assert_eq!(outcome(&about("system:serviceaccount:ns:"), &token(60)), Ok(()));
    assert_eq!(outcome(&about("system:serviceaccount:other:"), &token(60)), Err(JwtFault::Signature));
}

#[test]
fn a_bad_token_beside_a_good_one_is_refused() {
    let issuer = issuer("me");
    let good = issuer.issue("ns", "app", "api", HOUR, at(NOW)).unwrap();
    let old = issuer.issue("ns", "app", "api", HOUR, at(NOW - 7200)).unwrap();
    let requirement = one(provider(&issuer));
    let (good, old) = (format!("Bearer {good}"), format!("Bearer {old}"));
    assert_eq!(check(&requirement, "/", &[("authorization", &good), ("authorization", &old)]).0, Err(JwtFault::Expired));
    let query = format!("/?access_token={}", old.trim_start_matches("Bearer "));
    assert_eq!(check(&requirement, &query, &[("authorization", &good)]).0, Err(JwtFault::Expired));
}

#[test]
fn tokens_are_looked_for_only_where_the_provider_says() {
    let issuer = issuer("me");
    let token = issuer.issue("ns", "app", "api", HOUR, at(NOW)).unwrap();
    let header = TokenHeader { name: HeaderName::from_static("x-jwt"), prefix: "Tok ".into() };
    let places = Provider { headers: vec![header], parameters: vec!["t".into()], cookies: vec!["c".into()], ..provider(&issuer) };
    let requirement = one(places);
    assert_eq!(outcome(&requirement, &token), Err(JwtFault::Missing));
    assert_eq!(check(&requirement, "/", &[("x-jwt", &format!("Tok {token}"))]).0, Ok(()));
    assert_eq!(check(&requirement, "/", &[("cookie", &format!("a=b; c={token}"))]).0, Ok(()));
    let (result, _, _, path) = check(&requirement, &format!("/p?a=1&t={token}&b=2"), &[]);
    assert_eq!((result, path.as_deref()), (Ok(()), Some("/p?a=1&b=2")));
}

#[test]
fn requirements_combine_as_istio_writes_them() {
    let (a, b) = (issuer("a"), issuer("b"));
    let (pa, pb) = (Arc::new(provider(&a)), Arc::new(provider(&b)));
    let only = |p: &Arc<Provider>| Requirement::Provider(Arc::clone(p), Vec::new());
    let optional = Requirement::Any(vec![only(&pa), only(&pb), Requirement::AllowMissing(vec![pa.clone(), pb.clone()])]);
    let token = |issuer: &TokenIssuer, second| issuer.issue("ns", "app", "api", HOUR, at(second)).unwrap();
    assert_eq!(check(&optional, "/", &[]).0, Ok(()), "no token is allowed");
    assert_eq!((outcome(&optional, &token(&a, NOW)), outcome(&optional, &token(&b, NOW))), (Ok(()), Ok(())));
    assert_eq!(outcome(&optional, &token(&b, NOW - 7200)), Err(JwtFault::Expired));
    assert_eq!(outcome(&optional, &token(&issuer("c"), NOW)), Err(JwtFault::UnknownIssuer));
    let lax = Requirement::Any(vec![only(&pa), Requirement::AllowMissingOrFailed(vec![pa.clone()])]);
    assert_eq!(outcome(&lax, &token(&a, NOW - 7200)), Ok(()));
    let both = Requirement::All(vec![only(&pa), only(&pb)]);
    assert_eq!(outcome(&both, &token(&a, NOW)), Err(JwtFault::Missing), "taken by the first, it is not there for the second");
    let audience = Requirement::Provider(pa, vec!["special".into()]);
    assert_eq!(outcome(&audience, &token(&a, NOW)), Err(JwtFault::Audience));
}
