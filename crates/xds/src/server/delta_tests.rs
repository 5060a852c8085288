//! Tables for the delta server: what each request means, and what each answer holds.
use super::*;
use crate::types::{LISTENER, ROUTE};
use lateen_proto::Any;
use lateen_proto::any::pack;
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use lateen_proto::google::rpc;

fn stream() -> DeltaStream {
    DeltaStream::new("test".into())
}

fn resource(type_url: &str, name: &str, content: &str) -> Arc<Resource> {
    let body = match type_url {
        CLUSTER => pack(&Cluster {
            name: name.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            ..Default::default()
        }),
        _ => Any { type_url: type_url.into(), value: Vec::new() },
    };
    Arc::new(Resource { name: name.into(), version: content.into(), body })
}

fn world(type_url: &str, list: &[(&str, &str)]) -> Vec<Arc<Resource>> {
    list.iter().map(|(name, content)| resource(type_url, name, content)).collect()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn subscribe(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.into(), resource_names_subscribe: strings(names), ..Default::default() }
}

fn ack(answer: &Answer<DeltaDiscoveryResponse>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: answer.type_url.clone(), response_nonce: answer.response.nonce.clone(), ..Default::default() }
}

fn nack(answer: &Answer<DeltaDiscoveryResponse>) -> DeltaDiscoveryRequest {
    let error_detail = Some(rpc::Status { code: 3, message: "bad field".into(), ..Default::default() });
    DeltaDiscoveryRequest { error_detail, ..ack(answer) }
}

fn sent(answer: &Answer<DeltaDiscoveryResponse>) -> (Vec<String>, Vec<String>) {
    let names = answer.response.resources.iter().map(|r| format!("{}@{}", r.name, r.version)).collect();
    (names, answer.response.removed_resources.clone())
}

/// Opens a type and lets the client accept what it is given.
fn open(stream: &mut DeltaStream, type_url: &str, names: &[&str], list: &[(&str, &str)]) {
    let because = stream.on_request(subscribe(type_url, names)).unwrap().respond.unwrap();
    if let Some(answer) = stream.answer(type_url, &because, world(type_url, list)) {
        stream.on_request(ack(&answer)).unwrap();
    }
}

#[test]
fn naming_nothing_first_means_everything_for_clusters_and_nothing_for_endpoints() {
    let mut stream = stream();
    assert_eq!(stream.on_request(subscribe(CLUSTER, &[])).unwrap().respond, Some(Because::First));
    assert!(stream.names(CLUSTER).unwrap().wildcard);
    assert_eq!(stream.on_request(subscribe(ENDPOINT, &[])).unwrap().respond, None);
    assert!(stream.names(ENDPOINT).unwrap().is_empty());
    assert_eq!(stream.on_request(subscribe(ROUTE, &["*"])).unwrap().respond, Some(Because::First));
    assert!(stream.names(ROUTE).unwrap().wildcard);
}

#[test]
fn the_first_answer_of_a_wildcard_is_sent_even_when_it_is_empty() {
    let mut stream = stream();
    stream.on_request(subscribe(CLUSTER, &[])).unwrap();
    let answer = stream.answer(CLUSTER, &Because::First, Vec::new()).unwrap();
    assert_eq!((answer.resources, answer.removed), (0, 0));
    assert_eq!(answer.response.control_plane.unwrap().identifier, "test");
}

#[test]
fn an_answer_is_an_ack_a_nack_or_stale() {
    let mut stream = stream();
    stream.on_request(subscribe(CLUSTER, &[])).unwrap();
    let first = stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "1")])).unwrap();
    assert_eq!(stream.on_request(ack(&first)).unwrap(), Outcome { type_url: CLUSTER.into(), feedback: Feedback::Ack, respond: None });
    let second = stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "2")])).unwrap();
    let refused = stream.on_request(nack(&second)).unwrap();
    assert_eq!((refused.feedback, refused.respond), (Feedback::Nack { message: "bad field".into() }, None));
    let status = stream.status(CLUSTER).unwrap();
    assert_eq!(status.acked.unwrap().nonce, first.response.nonce);
    assert_eq!(status.nacked.unwrap().nonce, second.response.nonce);
    assert_eq!(stream.on_request(ack(&first)).unwrap().feedback, Feedback::Stale, "it was answered before");
    let foreign = DeltaDiscoveryRequest { type_url: CLUSTER.into(), response_nonce: "00000000-1".into(), ..Default::default() };
    assert_eq!(stream.on_request(foreign).unwrap().feedback, Feedback::Stale);
}

#[test]
fn an_answer_to_a_later_response_settles_the_earlier_ones_and_clears_the_refusal() {
    let mut stream = stream();
    stream.on_request(subscribe(CLUSTER, &[])).unwrap();
    let first = stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "1")])).unwrap();
    let second = stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "2")])).unwrap();
    assert!(matches!(stream.on_request(nack(&first)).unwrap().feedback, Feedback::Nack { .. }));
    assert_eq!(stream.on_request(ack(&second)).unwrap().feedback, Feedback::Ack);
    assert_eq!(stream.status(CLUSTER).unwrap().nacked, None);
}

#[test]
fn a_refused_version_is_not_sent_again_but_the_next_one_is() {
    let mut stream = stream();
    stream.on_request(subscribe(CLUSTER, &[])).unwrap();
    let answer = stream.answer(CLUSTER, &Because::First, world(CLUSTER, &[("a", "bad")])).unwrap();
    stream.on_request(nack(&answer)).unwrap();
    assert_eq!(stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "bad")])), None);
    let mended = stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "good")])).unwrap();
    assert_eq!(sent(&mended).0, ["a@good"]);
}

#[test]
fn a_subscription_change_counts_even_with_a_stale_nonce() {
    let mut stream = stream();
    open(&mut stream, ENDPOINT, &["a"], &[("a", "1")]);
    let request = DeltaDiscoveryRequest {
        type_url: ENDPOINT.into(),
        response_nonce: "gone".into(),
        resource_names_subscribe: strings(&["b"]),
        resource_names_unsubscribe: strings(&["a"]),
        ..Default::default()
    };
    let outcome = stream.on_request(request).unwrap();
    assert_eq!(outcome.feedback, Feedback::Stale);
    assert_eq!(outcome.respond, Some(Because::Subscribed(["b".to_owned()].into())));
    assert_eq!(stream.names(ENDPOINT), Some(&Names::only(["b".to_owned()])));
    assert_eq!(stream.scope(ENDPOINT, &Because::Subscribed(["b".to_owned()].into())), Names::only(["b".to_owned()]));
}

#[test]
fn a_name_subscribed_again_is_sent_again_and_one_that_does_not_exist_is_said_to_be_removed() {
    let mut stream = stream();
    open(&mut stream, ENDPOINT, &["a"], &[("a", "1")]);
    let because = stream.on_request(subscribe(ENDPOINT, &["a", "x"])).unwrap().respond.unwrap();
    let answer = stream.answer(ENDPOINT, &because, world(ENDPOINT, &[("a", "1")])).unwrap();
    assert_eq!(sent(&answer), (strings(&["a@1"]), strings(&["x"])));
}

#[test]
fn after_a_reconnect_only_what_differs_from_the_declared_versions_is_sent() {
    let mut stream = stream();
    let versions = [("same", "1"), ("old", "1"), ("gone", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    let request = DeltaDiscoveryRequest { initial_resource_versions: versions.into(), ..subscribe(CLUSTER, &[]) };
    let because = stream.on_request(request).unwrap().respond.unwrap();
    let answer = stream.answer(CLUSTER, &because, world(CLUSTER, &[("same", "1"), ("old", "2"), ("new", "1")])).unwrap();
    assert_eq!(sent(&answer), (strings(&["old@2", "new@1"]), strings(&["gone"])));
}

#[test]
fn versions_declared_for_names_that_are_not_subscribed_count_for_nothing() {
    let mut stream = stream();
    let request =
        DeltaDiscoveryRequest { initial_resource_versions: [("b".to_owned(), "1".to_owned())].into(), ..subscribe(ENDPOINT, &["a"]) };
    let because = stream.on_request(request).unwrap().respond.unwrap();
    let answer = stream.answer(ENDPOINT, &because, world(ENDPOINT, &[("a", "1")])).unwrap();
    assert_eq!(sent(&answer), (strings(&["a@1"]), strings(&[])));
}

#[test]
fn a_push_says_only_what_changed() {
    let mut stream = stream();
    open(&mut stream, ROUTE, &["80", "90"], &[("80", "1"), ("90", "1")]);
    assert_eq!(stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "1"), ("90", "1")])), None);
    let answer = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "2")])).unwrap();
    assert_eq!(sent(&answer), (strings(&["80@2"]), strings(&["90"])));
}

#[test]
fn endpoints_follow_a_changed_cluster_although_they_did_not_change() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("a", "1"), ("b", "1")]);
    open(&mut stream, ENDPOINT, &["a", "b"], &[("a", "1"), ("b", "1")]);
    assert!(!stream.endpoints_due());
    stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "2"), ("b", "1")])).unwrap();
    assert!(stream.endpoints_due());
    let answer = stream.answer(ENDPOINT, &Because::Push, world(ENDPOINT, &[("a", "1"), ("b", "1")])).unwrap();
    assert_eq!(sent(&answer).0, ["a@1"]);
    assert!(!stream.endpoints_due());
}

#[test]
fn endpoints_of_pushed_new_clusters_are_awaited_until_asked_for() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("a", "1")]);
    open(&mut stream, ENDPOINT, &["a"], &[("a", "1")]);
    assert!(!stream.awaits_endpoints(), "at first the client itself waits");
    stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "2"), ("b", "1")])).unwrap();
    stream.answer(ENDPOINT, &Because::Push, world(ENDPOINT, &[("a", "1")])).unwrap();
    assert!(stream.awaits_endpoints());
    let because = stream.on_request(subscribe(ENDPOINT, &["b"])).unwrap().respond.unwrap();
    stream.answer(ENDPOINT, &because, Vec::new()).unwrap();
    assert!(!stream.awaits_endpoints(), "that there are none is an answer too");
    stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "3"), ("b", "1")])).unwrap();
    assert!(!stream.awaits_endpoints(), "a cluster that changed is used as it was until its endpoints come");
}

#[test]
fn a_removed_cluster_stays_until_the_new_routes_are_accepted() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("old", "1")]);
    open(&mut stream, ENDPOINT, &["old"], &[("old", "1")]);
    open(&mut stream, ROUTE, &["80"], &[("80", "to old")]);
    let clusters = stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("new", "1")])).unwrap();
    assert_eq!(sent(&clusters), (strings(&["new@1"]), strings(&[])), "made before broken");
    assert_eq!(stream.answer(ENDPOINT, &Because::Push, Vec::new()), None);
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "to new")])).unwrap();
    stream.on_request(ack(&clusters)).unwrap();
    assert!(stream.flush(false).is_empty(), "the routes are not answered yet");
    stream.on_request(ack(&routes)).unwrap();
    let removals = stream.flush(false);
    assert_eq!(removals.iter().map(sent).collect::<Vec<_>>(), [(vec![], strings(&["old"])), (vec![], strings(&["old"]))]);
    assert_eq!((removals[0].type_url.as_str(), removals[1].type_url.as_str()), (CLUSTER, ENDPOINT));
    assert!(!stream.has_deferred());
}

#[test]
fn a_removed_cluster_stays_as_long_as_the_client_refuses_the_new_routes() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("old", "1")]);
    open(&mut stream, ROUTE, &["80"], &[("80", "to old")]);
    assert_eq!(stream.answer(CLUSTER, &Because::Push, Vec::new()), None);
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "broken")])).unwrap();
    stream.on_request(nack(&routes)).unwrap();
    assert!(stream.flush(true).is_empty());
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "mended")])).unwrap();
    stream.on_request(ack(&routes)).unwrap();
    assert_eq!(stream.flush(false).len(), 1);
}

#[test]
fn a_client_that_gives_up_a_refused_route_is_asked_about_the_others() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("old", "1")]);
    open(&mut stream, ROUTE, &["80", "90"], &[("80", "to old"), ("90", "1")]);
    assert_eq!(stream.answer(CLUSTER, &Because::Push, Vec::new()), None);
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "broken"), ("90", "1")])).unwrap();
    stream.on_request(nack(&routes)).unwrap();
    let gives_up = |name: &str| DeltaDiscoveryRequest { resource_names_unsubscribe: strings(&[name]), ..subscribe(ROUTE, &[]) };
    assert_eq!(stream.on_request(gives_up("70")).unwrap().respond, None, "it never had that");
    let because = stream.on_request(gives_up("80")).unwrap().respond.unwrap();
    assert_eq!(because, Because::Subscribed(["90".to_owned()].into()));
    let again = stream.answer(ROUTE, &because, world(ROUTE, &[("90", "1")])).unwrap();
    assert_eq!(sent(&again), (strings(&["90@1"]), strings(&[])));
    assert!(stream.flush(true).is_empty(), "it may be that one");
    stream.on_request(ack(&again)).unwrap();
    assert_eq!(stream.flush(false).len(), 1);
    assert_eq!(stream.on_request(gives_up("90")).unwrap().respond, None, "nothing is in doubt");
}

#[test]
fn a_client_that_refused_only_what_it_gives_up_holds_nothing_back() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("old", "1")]);
    open(&mut stream, ROUTE, &["80"], &[("80", "to old")]);
    assert_eq!(stream.answer(CLUSTER, &Because::Push, Vec::new()), None);
    let routes = stream.answer(ROUTE, &Because::Push, world(ROUTE, &[("80", "broken")])).unwrap();
    let request = DeltaDiscoveryRequest { resource_names_unsubscribe: strings(&["80"]), ..nack(&routes) };
    assert_eq!(stream.on_request(request).unwrap().respond, None);
    assert_eq!(stream.flush(false).len(), 1);
}

#[test]
fn a_name_stands_for_the_virtual_hosts_below_it() {
    use crate::types::VIRTUAL_HOST;
    let mut stream = stream();
    let all = [("r/a", "1"), ("r/b", "1"), ("s/c", "1")];
    let because = stream.on_request(subscribe(VIRTUAL_HOST, &["r"])).unwrap().respond.unwrap();
    let answer = stream.answer(VIRTUAL_HOST, &because, world(VIRTUAL_HOST, &all)).unwrap();
    assert_eq!(sent(&answer), (strings(&["r/a@1", "r/b@1"]), strings(&[])));
    let answer = stream.answer(VIRTUAL_HOST, &Because::Push, world(VIRTUAL_HOST, &[("r/a", "2"), ("s/c", "2")])).unwrap();
    assert_eq!(sent(&answer), (strings(&["r/a@2"]), strings(&["r/b"])));
    let because = stream.on_request(subscribe(VIRTUAL_HOST, &["r/none"])).unwrap().respond.unwrap();
    let answer = stream.answer(VIRTUAL_HOST, &because, world(VIRTUAL_HOST, &[])).unwrap();
    assert_eq!(sent(&answer), (strings(&["r/none@"]), strings(&[])));
    assert!(answer.response.resources[0].resource.is_none());
    let because = stream.on_request(subscribe(VIRTUAL_HOST, &["t"])).unwrap().respond.unwrap();
    assert_eq!(sent(&stream.answer(VIRTUAL_HOST, &because, world(VIRTUAL_HOST, &[])).unwrap()), (vec![], vec![]));
}

#[test]
fn a_client_that_does_not_answer_cannot_hold_removals_back_for_ever() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("old", "1")]);
    open(&mut stream, LISTENER, &[], &[]);
    stream.answer(CLUSTER, &Because::Push, Vec::new());
    stream.answer(LISTENER, &Because::Push, world(LISTENER, &[("l", "1")])).unwrap();
    assert!(stream.flush(false).is_empty());
    assert_eq!(stream.flush(true).len(), 1);
}

#[test]
fn a_cluster_that_comes_back_in_time_is_neither_removed_nor_sent_again() {
    let mut stream = stream();
    open(&mut stream, CLUSTER, &[], &[("a", "1")]);
    assert_eq!(stream.answer(CLUSTER, &Because::Push, Vec::new()), None);
    assert!(stream.has_deferred());
    assert_eq!(stream.answer(CLUSTER, &Because::Push, world(CLUSTER, &[("a", "1")])), None);
    assert!(!stream.has_deferred());
    assert!(stream.flush(true).is_empty());
}

#[test]
fn types_are_pushed_clusters_first() {
    let mut stream = stream();
    for type_url in [ROUTE, LISTENER, ENDPOINT, CLUSTER] {
        stream.on_request(subscribe(type_url, &["x"])).unwrap();
    }
    assert_eq!(stream.watched(), [CLUSTER, ENDPOINT, LISTENER, ROUTE]);
}

#[test]
fn greedy_and_malformed_requests_end_the_stream() {
    let mut stream = stream();
    assert_eq!(stream.on_request(DeltaDiscoveryRequest::default()), Err(ProtocolError::NoType));
    let names: Vec<String> = (0..=MAX_NAMES).map(|i| i.to_string()).collect();
    let request = DeltaDiscoveryRequest { type_url: ENDPOINT.into(), resource_names_subscribe: names, ..Default::default() };
    assert_eq!(stream.on_request(request), Err(ProtocolError::TooManyNames(ENDPOINT.into())));
    for i in 0..MAX_TYPES {
        stream.on_request(subscribe(&format!("type.googleapis.com/t{i}"), &[])).unwrap();
    }
    assert_eq!(stream.on_request(subscribe("type.googleapis.com/more", &[])), Err(ProtocolError::TooManyTypes));
}
