//! Tables for the client state machine.
use super::*;
use crate::client::nack::{INVALID_ARGUMENT, MAX_ERROR_BYTES};
use crate::types::{CLUSTER, ENDPOINT, LISTENER, VIRTUAL_HOST};
use lateen_proto::any::{pack, url};
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::service::discovery::v3::Resource as WireResource;

/// Applies everything except names that start with `bad`.
#[derive(Default)]
struct Recorder {
    updates: Vec<String>,
    removed: Vec<String>,
    refused: Vec<String>,
}

impl Handler for Recorder {
    fn apply(&mut self, _: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        self.removed.extend(removed);
        let (bad, good): (Vec<_>, Vec<_>) = updates.into_iter().partition(|r| r.name.starts_with("bad"));
        self.updates.extend(good.into_iter().map(|r| format!("{}@{}", r.name, r.version)));
        bad.into_iter().map(|r| Rejected { name: r.name, reason: "unknown filter".into() }).collect()
    }

    fn refused(&mut self, _: &str, names: &[String]) {
        self.refused.extend_from_slice(names);
    }
}

fn cluster(name: &str, note: &str) -> lateen_proto::Any {
    pack(&Cluster { name: name.into(), alt_stat_name: note.into(), ..Default::default() })
}

fn delta(type_url: &str, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| WireResource {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        resource: Some(lateen_proto::Any { type_url: type_url.to_owned(), value: Vec::new() }),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    }
}

fn sotw(nonce: &str, version: &str, resources: Vec<lateen_proto::Any>) -> DiscoveryResponse {
    DiscoveryResponse { type_url: CLUSTER.into(), nonce: nonce.into(), version_info: version.into(), resources, ..Default::default() }
}

/// The clock stands still unless a test says otherwise.
fn now() -> Instant {
    static NOW: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *NOW
}

fn client(mode: Mode) -> ClientState {
    ClientState::new(mode, Node { id: "sidecar~10.0.0.1~a.default~default.svc.cluster.local".into(), ..Default::default() })
}

fn next_delta(state: &mut ClientState) -> DeltaDiscoveryRequest {
    state.poll_request().unwrap().try_into().unwrap()
}

fn next_sotw(state: &mut ClientState) -> DiscoveryRequest {
    state.poll_request().unwrap().try_into().unwrap()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn a_wildcard_that_is_given_up_and_made_again_starts_over() {
    use crate::server::{DeltaStream, Stream};
    use crate::types::SCOPED_ROUTE;
    let (mut client, mut server) = (ClientState::new(Mode::Delta, Node::default()), DeltaStream::new("test".into()));
    let mut exchange = |client: &mut ClientState| {
        let mut answers = Vec::new();
        while let Some(Request::Delta(request)) = client.poll_request() {
            let body = lateen_proto::Any { type_url: SCOPED_ROUTE.to_owned(), value: Vec::new() };
            let all = vec![std::sync::Arc::new(Resource { name: "s".to_owned(), version: "1".to_owned(), body })];
            let because = server.on_request(request).unwrap().respond;
            if let Some(answer) = because.and_then(|because| server.answer(SCOPED_ROUTE, &because, all)) {
                answers.push(answer.resources);
                client.on_response(answer.response, &mut Recorder::default(), now());
            }
        }
        answers
    };
    client.subscribe_wildcard(SCOPED_ROUTE);
    assert_eq!(exchange(&mut client), [1]);
    client.unsubscribe_wildcard(SCOPED_ROUTE);
    assert!(client.accepted(SCOPED_ROUTE).unwrap().is_empty());
    assert!(exchange(&mut client).is_empty());
    client.subscribe_wildcard(SCOPED_ROUTE);
    assert_eq!(exchange(&mut client), [1]);
    client.unsubscribe_wildcard(SCOPED_ROUTE);
    client.subscribe_wildcard(SCOPED_ROUTE);
    assert_eq!(exchange(&mut client), [1], "within one turn");
}

#[test]
fn only_the_first_request_of_a_stream_carries_the_node_and_clusters_come_first() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(LISTENER);
    state.subscribe_wildcard(CLUSTER);
    let first = next_delta(&mut state);
    assert_eq!((first.type_url.as_str(), first.node.is_some()), (CLUSTER, true));
    assert!(first.resource_names_subscribe.is_empty(), "a wildcard alone is said by naming nothing");
    let second = next_delta(&mut state);
    assert_eq!((second.type_url.as_str(), second.node.is_some()), (LISTENER, false));
    assert!(state.poll_request().is_none());
}

#[test]
fn a_response_is_acknowledged_with_its_nonce_together_with_new_subscriptions() {
    let mut state = client(Mode::Delta);
    state.subscribe(ENDPOINT, names(&["a"]));
    assert_eq!(next_delta(&mut state).resource_names_subscribe, ["a"]);
    state.on_response(delta(ENDPOINT, "n1", &[("a", "1")], &[]), &mut Recorder::default(), now());
    state.subscribe(ENDPOINT, names(&["b"]));
    state.unsubscribe(ENDPOINT, &names(&["a"]));
    let ack = next_delta(&mut state);
    assert_eq!(ack.response_nonce, "n1");
    assert_eq!(ack.error_detail, None);
    assert_eq!((ack.resource_names_subscribe, ack.resource_names_unsubscribe), (names(&["b"]), names(&["a"])));
    assert!(state.poll_request().is_none());
}

#[test]
fn a_bad_resource_is_named_while_the_good_ones_apply_and_only_their_versions_are_kept() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut recorder = Recorder::default();
    state.on_response(delta(CLUSTER, "n1", &[("good", "1"), ("bad", "1")], &[]), &mut recorder, now());
    assert_eq!(recorder.updates, ["good@1"]);
    let nack = next_delta(&mut state);
    assert_eq!(nack.response_nonce, "n1");
    let error = nack.error_detail.unwrap();
    assert_eq!((error.code, error.message.as_str()), (INVALID_ARGUMENT, "cds bad: unknown filter"));

    state.on_connect();
    let again = next_delta(&mut state);
    assert_eq!(again.initial_resource_versions.into_iter().collect::<Vec<_>>(), [("good".to_owned(), "1".to_owned())]);
}

#[test]
fn an_update_that_is_rejected_leaves_the_older_version_remembered() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut pass = Recorder::default();
    state.on_response(delta(CLUSTER, "n1", &[("x", "1")], &[]), &mut pass, now());
    struct Never;
    impl Handler for Never {
        fn apply(&mut self, _: &str, updates: Vec<Resource>, _: Vec<String>) -> Vec<Rejected> {
            updates.into_iter().map(|r| Rejected { name: r.name, reason: "no".into() }).collect()
        }
    }
    state.on_response(delta(CLUSTER, "n2", &[("x", "2")], &[]), &mut Never, now());
    assert_eq!(state.accepted(CLUSTER).unwrap()["x"], "1");
    assert_eq!(next_delta(&mut state).response_nonce, "n1", "answers keep their order");
    assert!(next_delta(&mut state).error_detail.is_some());
}

#[test]
fn malformed_resources_are_rejected_by_name_before_the_handler_sees_them() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut response = delta(CLUSTER, "n1", &[("empty", "1"), ("wrong", "1"), ("twice", "1"), ("twice", "2")], &[]);
    response.resources[0].resource = None;
    response.resources[1].resource.as_mut().unwrap().type_url = LISTENER.into();
    let mut recorder = Recorder::default();
    state.on_response(response, &mut recorder, now());
    assert_eq!(
        (recorder.updates.as_slice(), recorder.refused.as_slice()),
        (&names(&["twice@1"])[..], &names(&["empty", "wrong", "twice"])[..])
    );
    let message = next_delta(&mut state).error_detail.unwrap().message;
    for part in ["empty: the resource has no content", "wrong: is a ", "twice: the name occurs twice"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_crosses_an_unsubscription_is_dropped() {
    let mut state = client(Mode::Delta);
    state.subscribe(ENDPOINT, names(&["a", "b"]));
    next_delta(&mut state);
    state.unsubscribe(ENDPOINT, &names(&["a"]));
    let mut recorder = Recorder::default();
    state.on_response(delta(ENDPOINT, "n1", &[("a", "1"), ("b", "1")], &[]), &mut recorder, now());
    assert_eq!(recorder.updates, ["b@1"]);
    assert!(!state.accepted(ENDPOINT).unwrap().contains_key("a"));
}

#[test]
fn a_name_dropped_and_wanted_again_before_anything_was_sent_is_asked_for_again() {
    let mut state = client(Mode::Delta);
    state.subscribe(ENDPOINT, names(&["a"]));
    next_delta(&mut state);
    state.on_response(delta(ENDPOINT, "n1", &[("a", "1")], &[]), &mut Recorder::default(), now());
    next_delta(&mut state);
    state.unsubscribe(ENDPOINT, &names(&["a"]));
    state.subscribe(ENDPOINT, names(&["a", "b"]));
    // In one request a server would see no change, or an end.
    let first = next_delta(&mut state);
    assert_eq!((first.resource_names_subscribe, first.resource_names_unsubscribe), (names(&["b"]), names(&["a"])));
    let second = next_delta(&mut state);
    assert_eq!((second.resource_names_subscribe, second.resource_names_unsubscribe), (names(&["a"]), names(&[])));
    assert!(state.poll_request().is_none());
}

#[test]
fn in_state_of_the_world_too_a_name_is_given_up_before_it_is_wanted_again() {
    let mut state = client(Mode::Sotw);
    state.subscribe(ENDPOINT, names(&["a", "b"]));
    next_sotw(&mut state);
    let response = DiscoveryResponse { type_url: ENDPOINT.into(), nonce: "n1".into(), version_info: "v1".into(), ..Default::default() };
    state.on_response(response, &mut Recorder::default(), now());
    state.unsubscribe(ENDPOINT, &names(&["a"]));
    state.subscribe(ENDPOINT, names(&["a"]));
    assert_eq!([next_sotw(&mut state), next_sotw(&mut state)].map(|request| request.resource_names), [names(&["b"]), names(&["a", "b"])]);
    assert!(state.poll_request().is_none());
}

#[test]
fn set_sends_only_the_difference() {
    let mut state = client(Mode::Delta);
    state.set(ENDPOINT, names(&["a", "b"]));
    assert_eq!(next_delta(&mut state).resource_names_subscribe, ["a", "b"]);
    state.set(ENDPOINT, names(&["b", "c"]));
    let request = next_delta(&mut state);
    assert_eq!((request.resource_names_subscribe, request.resource_names_unsubscribe), (names(&["c"]), names(&["a"])));
    state.set(ENDPOINT, names(&["b", "c"]));
    assert!(state.poll_request().is_none());
}

#[test]
fn removals_reach_the_handler_and_forget_the_version() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut recorder = Recorder::default();
    state.on_response(delta(CLUSTER, "n1", &[("a", "1")], &[]), &mut recorder, now());
    state.on_response(delta(CLUSTER, "n2", &[], &["a"]), &mut recorder, now());
    assert_eq!(recorder.removed, ["a"]);
    assert!(state.accepted(CLUSTER).unwrap().is_empty());
}

#[test]
fn a_type_that_was_not_asked_for_is_neither_applied_nor_answered() {
    let mut state = client(Mode::Delta);
    let mut recorder = Recorder::default();
    state.on_response(delta(CLUSTER, "n1", &[("a", "1")], &[]), &mut recorder, now());
    assert!(recorder.updates.is_empty());
    assert!(state.poll_request().is_none());
}

#[test]
fn after_a_reconnect_old_answers_are_not_sent_and_names_are_subscribed_anew() {
    let mut state = client(Mode::Delta);
    state.subscribe(ENDPOINT, names(&["a"]));
    next_delta(&mut state);
    state.on_response(delta(ENDPOINT, "n1", &[("a", "1")], &[]), &mut Recorder::default(), now());
    state.subscribe(ENDPOINT, names(&["b"]));
    state.on_connect();
    let first = next_delta(&mut state);
    assert_eq!(first.response_nonce, "");
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
    assert_eq!(first.initial_resource_versions.len(), 1);
    assert!(first.node.is_some());
    assert!(state.poll_request().is_none());
}

#[test]
fn a_state_of_the_world_without_a_cluster_removes_it_and_repeats_nothing_to_the_handler() {
    let mut state = client(Mode::Sotw);
    state.subscribe_wildcard(CLUSTER);
    let first = next_sotw(&mut state);
    assert!(first.version_info.is_empty() && first.response_nonce.is_empty());
    let mut recorder = Recorder::default();
    state.on_response(sotw("n1", "v1", vec![cluster("a", ""), cluster("b", "")]), &mut recorder, now());
    assert_eq!(recorder.updates.len(), 2);
    let ack = next_sotw(&mut state);
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "n1"));
    state.on_response(sotw("n2", "v2", vec![cluster("b", "")]), &mut recorder, now());
    assert_eq!((recorder.updates.len(), recorder.removed.as_slice()), (2, &names(&["a"])[..]));
}

#[test]
fn a_refused_state_of_the_world_keeps_the_accepted_version_and_what_was_in_use() {
    let mut state = client(Mode::Sotw);
    state.subscribe_wildcard(CLUSTER);
    next_sotw(&mut state);
    let mut recorder = Recorder::default();
    state.on_response(sotw("n1", "v1", vec![cluster("a", "")]), &mut recorder, now());
    next_sotw(&mut state);
    state.on_response(sotw("n2", "v2", vec![cluster("a", "changed"), cluster("bad", "")]), &mut recorder, now());
    let nack = next_sotw(&mut state);
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "n2"));
    assert!(nack.error_detail.unwrap().message.contains("cds bad: unknown filter"));
    assert_eq!(recorder.updates.len(), 2, "the good one of the same response applies");
    assert!(recorder.removed.is_empty());
}

#[test]
fn a_state_of_the_world_that_is_not_all_read_removes_nothing() {
    let nameless = lateen_proto::Any { type_url: CLUSTER.into(), value: vec![0xff; 3] };
    let unread = lateen_proto::Any { type_url: url::<WireResource>(), value: vec![0xff; 3] };
    let wrong = lateen_proto::Any { type_url: LISTENER.into(), ..cluster("b", "") };
    for (other, reason) in [(nameless, "does not decode"), (unread, "decode"), (wrong, "cds b: is a ")] {
        let mut state = client(Mode::Sotw);
        state.subscribe_wildcard(CLUSTER);
        next_sotw(&mut state);
        let mut recorder = Recorder::default();
        state.on_response(sotw("n1", "v1", vec![cluster("a", ""), cluster("b", "")]), &mut recorder, now());
        next_sotw(&mut state);
        state.on_response(sotw("n2", "v2", vec![other, cluster("c", "")]), &mut recorder, now());
        let error = next_sotw(&mut state).error_detail.unwrap().message;
        assert!(error.contains(reason), "{error}");
        assert_eq!((recorder.updates.len(), recorder.removed.len()), (3, 0), "the good one applies");
        assert_eq!(recorder.refused, if error.contains("cds b") { names(&["b"]) } else { names(&[]) });
        state.on_response(sotw("n3", "v3", vec![cluster("c", "")]), &mut recorder, now());
        assert_eq!(recorder.removed, ["a", "b"]);
    }
}

#[test]
fn what_cannot_be_read_may_be_any_that_was_asked_for_and_has_not_come() {
    let mut state = client(Mode::Sotw);
    state.subscribe(CLUSTER, names(&["a", "b", "c", "d"]));
    next_sotw(&mut state);
    let mut recorder = Recorder::default();
    state.on_response(sotw("n1", "v1", vec![cluster("a", "")]), &mut recorder, now());
    assert_eq!(recorder.refused, names(&[]));
    next_sotw(&mut state);
    let unread = lateen_proto::Any { type_url: CLUSTER.into(), value: vec![0xff; 3] };
    let wrong = lateen_proto::Any { type_url: LISTENER.into(), ..cluster("c", "") };
    state.on_response(sotw("n2", "v2", vec![unread, cluster("b", ""), wrong]), &mut recorder, now());
    assert_eq!(recorder.updates.len(), 2, "{:?}", recorder.updates);
    assert_eq!(recorder.refused, names(&["c", "d"]));
}

#[test]
fn a_refusal_is_over_when_the_state_of_the_world_has_what_is_in_use_or_nothing() {
    struct Picky(Vec<String>);
    impl Handler for Picky {
        fn apply(&mut self, _: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
            self.0.extend(removed.into_iter().map(|name| format!("-{name}")));
            self.0.extend(updates.iter().map(|r| r.name.clone()));
            let refused = updates.into_iter().filter(|r| r.body != cluster(&r.name, ""));
            refused.map(|r| Rejected { name: r.name, reason: "no".into() }).collect()
        }
    }
    let mut state = client(Mode::Sotw);
    state.subscribe_wildcard(CLUSTER);
    next_sotw(&mut state);
    let mut hears = |resources| {
        let mut handler = Picky(Vec::new());
        state.on_response(sotw("n", "v", resources), &mut handler, now());
        handler.0
    };
    assert_eq!(hears(vec![cluster("a", "")]), ["a"]);
    assert_eq!(hears(vec![cluster("a", "bad"), cluster("b", "bad")]), ["a", "b"]);
    assert_eq!(hears(vec![cluster("a", "")]), ["-b", "a"]);
    assert_eq!(hears(vec![cluster("a", "")]), [""; 0]);
    assert_eq!(hears(vec![cluster("a", "bad")]), ["a"]);
    assert_eq!(hears(vec![]), ["-a"], "once");
}

#[test]
fn in_state_of_the_world_a_change_of_names_repeats_all_of_them_with_the_last_nonce() {
    let mut state = client(Mode::Sotw);
    state.subscribe(ENDPOINT, names(&["a"]));
    next_sotw(&mut state);
    let response = DiscoveryResponse { type_url: ENDPOINT.into(), nonce: "n1".into(), version_info: "v1".into(), ..Default::default() };
    state.on_response(response, &mut Recorder::default(), now());
    next_sotw(&mut state);
    state.subscribe(ENDPOINT, names(&["b"]));
    let change = next_sotw(&mut state);
    assert_eq!((change.resource_names.as_slice(), change.response_nonce.as_str()), (&names(&["a", "b"])[..], "n1"));
    assert!(state.poll_request().is_none());
}

#[test]
fn a_thousand_rejections_make_a_bounded_message() {
    let rejected: Vec<Rejected> = (0..1000).map(|i| Rejected { name: format!("bad{i}"), reason: "x".repeat(100) }).collect();
    let message = nack(CLUSTER, &rejected).unwrap().message;
    assert!(message.len() < MAX_ERROR_BYTES + 1024 && message.ends_with(" more"), "{}", message.len());
}

#[test]
fn virtual_hosts_come_below_the_name_of_their_routes_or_under_another_name_and_may_be_denied() {
    let mut state = client(Mode::Delta);
    state.subscribe(VIRTUAL_HOST, names(&["r", "s/x.test"]));
    next_delta(&mut state);
    let mut recorder = Recorder::default();
    let mut response = delta(VIRTUAL_HOST, "n1", &[("r/a", "1"), ("q/a", "1"), ("s/x", "1"), ("s/y", "1")], &[]);
    response.resources[2].aliases = names(&["s/x.test"]);
    state.on_response(response, &mut recorder, now());
    assert_eq!(recorder.updates, ["r/a@1", "s/x@1"]);
    assert!(next_delta(&mut state).error_detail.is_none());
    let mut response = delta(VIRTUAL_HOST, "n2", &[("s/x.test", "")], &[]);
    response.resources[0].resource = None;
    state.on_response(response, &mut recorder, now());
    assert_eq!(recorder.removed, ["s/x.test"]);
    assert!(next_delta(&mut state).error_detail.is_none(), "that there is none is an answer");
}

/// As a server sends them: without content they only tell how long a resource lives.
fn with_ttl(mut response: DeltaDiscoveryResponse, seconds: i64) -> DeltaDiscoveryResponse {
    response.resources.iter_mut().for_each(|r| r.ttl = Some(lateen_proto::Duration { seconds, nanos: 0 }));
    response
}

fn heartbeat(nonce: &str, name: &str, version: &str, seconds: i64) -> DeltaDiscoveryResponse {
    let mut response = with_ttl(delta(CLUSTER, nonce, &[(name, version)], &[]), seconds);
    response.resources[0].resource = None;
    response
}

#[test]
fn a_resource_ends_with_its_time_to_live_unless_that_is_renewed() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let (mut recorder, after) = (Recorder::default(), |seconds| now() + Duration::from_secs(seconds));
    state.on_response(with_ttl(delta(CLUSTER, "n1", &[("a", "1"), ("b", "1")], &[]), 10), &mut recorder, now());
    assert_eq!(state.next_end(), Some(after(10)));
    state.on_response(heartbeat("n2", "a", "1", 10), &mut recorder, after(5));
    state.expire(&mut recorder, after(10));
    assert_eq!((recorder.updates.len(), recorder.removed.as_slice()), (2, &names(&["b"])[..]), "the beat of a heart is no update");
    assert_eq!(state.next_end(), Some(after(15)));
    // A reconnect asks for what ended, and tells the version of what did not; time goes on meanwhile.
    state.on_connect();
    assert_eq!(next_delta(&mut state).initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a"]);
    state.expire(&mut recorder, after(15));
    assert_eq!((recorder.removed.as_slice(), state.next_end()), (&names(&["b", "a"])[..], None));
    assert!(state.accepted(CLUSTER).unwrap().is_empty());
}

#[test]
fn a_time_to_live_is_taken_back_by_sending_the_resource_without_one() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut recorder = Recorder::default();
    let mut beat = heartbeat("n2", "a", "1", 10);
    beat.resources[0].ttl = None;
    for (again, removed) in [(delta(CLUSTER, "n2", &[("a", "1")], &[]), 0), (beat, 0), (delta(CLUSTER, "n2", &[], &["a"]), 1)] {
        state.on_response(with_ttl(delta(CLUSTER, "n1", &[("a", "1")], &[]), 10), &mut recorder, now());
        assert!(state.next_end().is_some());
        state.on_response(again, &mut recorder, now());
        assert_eq!((state.next_end(), recorder.removed.len()), (None, removed));
    }
}

#[test]
fn without_content_only_the_accepted_version_lives_on_and_aliases_alone_say_nothing() {
    let mut state = client(Mode::Delta);
    state.subscribe_wildcard(CLUSTER);
    next_delta(&mut state);
    let mut recorder = Recorder::default();
    state.on_response(delta(CLUSTER, "n1", &[("a", "1")], &[]), &mut recorder, now());
    next_delta(&mut state);
    for (name, version, seconds, reason) in [
        ("a", "2", 10, "the resource has no content"),
        ("b", "1", 10, "the resource has no content"),
        ("a", "1", -1, "ttl: is not a time span from 0 on"),
    ] {
        state.on_response(heartbeat("n2", name, version, seconds), &mut recorder, now());
        assert_eq!(next_delta(&mut state).error_detail.map(|e| e.message), Some(format!("cds {name}: {reason}")));
    }
    let mut response = delta(CLUSTER, "n3", &[("c", "")], &[]);
    response.resources[0].resource = None;
    response.resources[0].aliases = names(&["d"]);
    state.on_response(response, &mut recorder, now());
    assert_eq!(next_delta(&mut state).error_detail, None);
    assert_eq!((recorder.updates.len(), recorder.removed.len(), state.next_end()), (1, 0, None));
}

fn wrapped(name: &str, body: Option<lateen_proto::Any>, seconds: i64) -> lateen_proto::Any {
    let ttl = Some(lateen_proto::Duration { seconds, nanos: 0 });
    pack(&WireResource { name: name.into(), resource: body, ttl, ..Default::default() })
}

#[test]
fn a_state_of_the_world_may_wrap_resources_and_then_renew_them_alone() {
    let mut state = client(Mode::Sotw);
    state.subscribe_wildcard(CLUSTER);
    next_sotw(&mut state);
    let (mut recorder, after) = (Recorder::default(), |seconds| now() + Duration::from_secs(seconds));
    let both = vec![wrapped("a", Some(cluster("a", "")), 10), cluster("b", "")];
    state.on_response(sotw("n1", "v1", both), &mut recorder, now());
    assert_eq!(recorder.updates.len(), 2);
    assert_eq!(next_sotw(&mut state).error_detail, None);
    state.on_response(sotw("n2", "v1", vec![wrapped("a", None, 10)]), &mut recorder, after(5));
    assert_eq!(next_sotw(&mut state).error_detail, None);
    assert_eq!((recorder.updates.len(), recorder.removed.len(), state.next_end()), (2, 0, Some(after(15))));
    // Beside others it says that the resource is still there.
    state.on_response(sotw("n3", "v1", vec![wrapped("a", None, 10), cluster("c", "")]), &mut recorder, after(5));
    assert_eq!((recorder.updates.len(), recorder.removed.as_slice()), (3, &names(&["b"])[..]));
    next_sotw(&mut state);
    state.on_response(sotw("n4", "v2", vec![wrapped("a", None, 10), cluster("c", "")]), &mut recorder, after(5));
    assert_eq!(next_sotw(&mut state).error_detail.map(|e| e.message), Some("cds a: the resource has no content".to_owned()));
    state.expire(&mut recorder, after(15));
    assert_eq!(recorder.removed, ["b", "a"]);
}
