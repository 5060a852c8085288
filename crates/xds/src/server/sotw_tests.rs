//! Tables for the state-of-the-world server.
use super::*;
use crate::types::{LISTENER, ROUTE};
use lateen_proto::Any;
use lateen_proto::google::rpc;

fn stream() -> SotwStream {
    SotwStream::new("test".into())
}

fn world(type_url: &str, list: &[(&str, &str)]) -> Vec<Arc<Resource>> {
    let resource = |(name, content): &(&str, &str)| {
        let body = Any { type_url: type_url.to_owned(), value: name.as_bytes().to_vec() };
        Arc::new(Resource { name: (*name).to_owned(), version: (*content).to_owned(), body })
    };
    list.iter().map(resource).collect()
}

fn request(type_url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        resource_names: names.iter().map(|s| (*s).to_owned()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

fn holds(answer: &Answer<DiscoveryResponse>) -> Vec<String> {
    answer.response.resources.iter().map(|any| String::from_utf8(any.value.clone()).unwrap()).collect()
}

fn set(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn a_client_of_the_grpc_library_asks_by_name_and_gets_only_that() {
    let mut stream = stream();
    let outcome = stream.on_request(request(LISTENER, &["echo.default.svc.cluster.local:80"], "")).unwrap();
    assert_eq!(outcome.respond, Some(Because::First));
    assert!(!stream.names(LISTENER).unwrap().wildcard);
    let everything = world(LISTENER, &[("other", "1"), ("echo.default.svc.cluster.local:80", "1")]);
    let answer = stream.answer(LISTENER, &Because::First, everything).unwrap();
    assert_eq!(holds(&answer), ["echo.default.svc.cluster.local:80"]);
    assert!(!answer.response.version_info.is_empty());
}

#[test]
fn the_first_answer_comes_even_when_there_is_nothing() {
    let mut stream = stream();
    stream.on_request(request(LISTENER, &["missing:80"], "")).unwrap();
    assert!(stream.answer(LISTENER, &Because::First, Vec::new()).unwrap().response.resources.is_empty());
}

#[test]
fn answers_are_acks_nacks_stale_or_changes_of_names() {
    let mut stream = stream();
    stream.on_request(request(ENDPOINT, &["a"], "")).unwrap();
    let first = stream.answer(ENDPOINT, &Because::First, world(ENDPOINT, &[("a", "1")])).unwrap();
    let nonce = first.response.nonce.as_str();
    let acked = stream.on_request(request(ENDPOINT, &["a"], nonce)).unwrap();
    assert_eq!((acked.feedback, acked.respond), (Feedback::Ack, None));
    let changed = stream.on_request(request(ENDPOINT, &["a", "b"], nonce)).unwrap();
    assert_eq!((changed.feedback, changed.respond), (Feedback::None, Some(Because::Subscribed(set(&["b"])))));
    let second = stream.answer(ENDPOINT, &Because::Subscribed(set(&["b"])), world(ENDPOINT, &[("a", "1"), ("b", "1")])).unwrap();
    assert_eq!(holds(&second), ["a", "b"]);
    let stale = stream.on_request(request(ENDPOINT, &["a"], nonce)).unwrap();
    assert_eq!((stale.feedback, stale.respond), (Feedback::Stale, None));
    assert_eq!(stream.names(ENDPOINT).unwrap().names, set(&["a", "b"]), "a stale request changes nothing");
    let mut refusal = request(ENDPOINT, &["a", "b"], &second.response.nonce);
    refusal.error_detail = Some(rpc::Status { message: "bad".into(), ..Default::default() });
    let refused = stream.on_request(refusal).unwrap();
    assert_eq!((refused.feedback, refused.respond), (Feedback::Nack { message: "bad".into() }, None));
    assert_eq!(stream.status(ENDPOINT).unwrap().nacked.unwrap().message, "bad");
}

#[test]
fn fewer_names_need_no_answer_and_none_at_all_unsubscribes() {
    let mut stream = stream();
    stream.on_request(request(LISTENER, &["a", "b"], "")).unwrap();
    let answer = stream.answer(LISTENER, &Because::First, world(LISTENER, &[("a", "1"), ("b", "1")])).unwrap();
    let outcome = stream.on_request(request(LISTENER, &[], &answer.response.nonce)).unwrap();
    assert_eq!((outcome.feedback, outcome.respond), (Feedback::Ack, None));
    assert!(stream.names(LISTENER).unwrap().is_empty(), "silence means everything only at first");
    assert!(stream.watched().is_empty());
}

#[test]
fn a_wildcard_by_silence_stays_one() {
    let mut stream = stream();
    stream.on_request(request(CLUSTER, &[], "")).unwrap();
    let answer = stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "1")])).unwrap();
    stream.on_request(request(CLUSTER, &[], &answer.response.nonce)).unwrap();
    assert!(stream.names(CLUSTER).unwrap().wildcard);
}

#[test]
fn an_empty_nonce_on_a_known_type_starts_over() {
    let mut stream = stream();
    stream.on_request(request(CLUSTER, &[], "")).unwrap();
    stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "1")])).unwrap();
    assert_eq!(stream.on_request(request(CLUSTER, &[], "")).unwrap().respond, Some(Because::First));
}

#[test]
fn an_unchanged_world_is_not_pushed() {
    let mut stream = stream();
    stream.on_request(request(ROUTE, &["80"], "")).unwrap();
    let first = stream.answer(ROUTE, &Because::First, world(ROUTE, &[("80", "1")])).unwrap();
    assert_eq!(stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "1")])), None);
    let second = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "2")])).unwrap();
    assert_ne!(first.response.version_info, second.response.version_info);
}

#[test]
fn clusters_bring_their_endpoints_along() {
    let mut stream = stream();
    stream.on_request(request(CLUSTER, &[], "")).unwrap();
    stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "1")])).unwrap();
    stream.on_request(request(ENDPOINT, &["a"], "")).unwrap();
    stream.answer(ENDPOINT, &Because::First, world(ENDPOINT, &[("a", "1")])).unwrap();
    assert!(!stream.endpoints_due());
    stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "2")])).unwrap();
    assert!(stream.endpoints_due());
    assert_eq!(holds(&stream.answer(ENDPOINT, &Because::Push, world(ENDPOINT, &[("a", "1")])).unwrap()), ["a"]);
}

#[test]
fn a_removed_cluster_is_left_out_only_after_the_routes_moved() {
    let mut stream = stream();
    let mut open = |type_url: &str, names: &[&str], list: &[(&str, &str)]| {
        stream.on_request(request(type_url, names, "")).unwrap();
        let answer = stream.answer(type_url, &Because::First, world(type_url, list)).unwrap();
        stream.on_request(request(type_url, names, &answer.response.nonce)).unwrap();
    };
    open(CLUSTER, &[], &[("old", "1")]);
    open(ROUTE, &["80"], &[("80", "to old")]);
    let clusters = stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("new", "1")])).unwrap();
    assert_eq!(holds(&clusters), ["new", "old"]);
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "to new")])).unwrap();
    stream.on_request(request(CLUSTER, &[], &clusters.response.nonce)).unwrap();
    assert!(stream.flush(false).is_empty());
    stream.on_request(request(ROUTE, &["80"], &routes.response.nonce)).unwrap();
    let last = stream.flush(false);
    assert_eq!(holds(&last[0]), ["new"]);
    assert!(!stream.has_deferred());
    assert_eq!(stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("new", "1")])), None);
}

#[test]
fn a_client_that_gives_up_a_refused_route_is_asked_about_the_others() {
    let mut stream = stream();
    stream.on_request(request(CLUSTER, &[], "")).unwrap();
    let clusters = stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("old", "1")])).unwrap();
    stream.on_request(request(CLUSTER, &[], &clusters.response.nonce)).unwrap();
    stream.on_request(request(ROUTE, &["80", "90"], "")).unwrap();
    let routes = stream.answer(ROUTE, &Because::First, world(ROUTE, &[("80", "1"), ("90", "1")])).unwrap();
    let refusal = DiscoveryRequest { error_detail: Some(rpc::Status::default()), ..request(ROUTE, &["80", "90"], &routes.response.nonce) };
    stream.on_request(refusal).unwrap();
    assert_eq!(stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("new", "1")])).unwrap().resources, 2);
    stream.on_request(request(CLUSTER, &[], &stream.status(CLUSTER).unwrap().sent.unwrap().nonce)).unwrap();
    let because = stream.on_request(request(ROUTE, &["90"], &routes.response.nonce)).unwrap().respond.unwrap();
    let again = stream.answer(ROUTE, &because, world(ROUTE, &[("90", "1")])).unwrap();
    assert_eq!(holds(&again), ["90"]);
    assert!(stream.flush(true).is_empty(), "it may be that one");
    stream.on_request(request(ROUTE, &["90"], &again.response.nonce)).unwrap();
    assert_eq!(holds(&stream.flush(false)[0]), ["new"]);
}

#[test]
fn greedy_and_malformed_requests_end_the_stream() {
    let mut stream = stream();
    assert_eq!(stream.on_request(DiscoveryRequest::default()), Err(ProtocolError::NoType));
    let names: Vec<String> = (0..=MAX_NAMES).map(|i| i.to_string()).collect();
    let greedy = DiscoveryRequest { type_url: ENDPOINT.into(), resource_names: names, ..Default::default() };
    assert_eq!(stream.on_request(greedy), Err(ProtocolError::TooManyNames(ENDPOINT.into())));
}
