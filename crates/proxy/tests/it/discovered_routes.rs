//! Routes that are found by scope, and virtual hosts and routes that are discovered because a request wants them.
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lateen_proto::any::{pack, url};
use lateen_proto::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use lateen_proto::json::Codec;
use lateen_proxy::{Asked, Wishes};
use lateen_snapshot::bootstrap::yaml;
use lateen_snapshot::compile::{Compiler, Update, Wish};
use prost::{Message, Name};

use crate::support::*;

const SCOPED: &str = "scoped_routes: {name: s, scope_key_builder: {fragments: [{header_value_extractor: {name: x-scope, element_separator: ';', \
                      element: {separator: '=', key: v}}}]}, rds_config_source: {ads: {}}, CONFIG}";
const RDS: &str = "rds: {route_config_name: r, config_source: {ads: {}}}";
const ON_DEMAND: &str = "{name: envoy.filters.http.on_demand, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand, \
                         odcds: {source: {ads: {}}, timeout: LIMIT}}},";

fn config(routes: &str, filters: &str) -> String {
    format!(
        "
node: {{id: t, cluster: t}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          {routes}
          http_filters: [{filters} {{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"
    )
}

fn message<M: Message + Name + Default>(text: &str) -> M {
    Codec::new().read(&(&yaml::read(text).unwrap()).into()).unwrap()
}

fn apply<M: Message + Name + Default>(compiler: &mut Compiler, name: &str, text: &str) {
    let update = Update { name: name.to_owned(), version: "1".to_owned(), body: pack(&message::<M>(text)) };
    assert_eq!(compiler.apply(&url::<M>(), vec![update], &[], Instant::now()), []);
}

/// Routes that answer with their name.
fn answering(name: &str, more: &str) -> String {
    format!("{{name: {name}, virtual_hosts: [{{name: own, domains: [own], routes: [{}]}}] {more}}}", says(name))
}

fn says(text: &str) -> String {
    format!("{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}")
}

fn incremental(yaml: &str) -> Compiler {
    let mut compiler = compiler(yaml);
    compiler.set_incremental(true);
    compiler
}

/// Routes have come whose virtual hosts are discovered, and the server has said that there are none yet.
fn awaiting_hosts(yaml: &str) -> Compiler {
    let mut compiler = incremental(yaml);
    apply::<RouteConfiguration>(&mut compiler, "r", &answering("r", ", vhds: {config_source: {ads: {}}}"));
    compiler.snapshot();
    assert_eq!(compiler.apply(&url::<VirtualHost>(), Vec::new(), &[], Instant::now()), []);
    compiler
}

fn get(proxy: &Proxy, host: &str, more: &str) -> (u16, String) {
    let answer = proxy.call(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n{more}\r\n"));
    (answer.status, answer.body)
}

/// Calls, and answers the wish that the call has with what `discover` makes of the configuration.
fn wished(
    proxy: &Proxy,
    asked: &mut mpsc::Receiver<Asked>,
    call: (&str, &str),
    discover: impl FnOnce(&Wish) -> std::sync::Arc<lateen_snapshot::Snapshot>,
) -> (u16, String) {
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| get(proxy, call.0, call.1));
        let Asked { wish, answer } = asked.recv_timeout(WAIT).unwrap();
        let snapshot = discover(&wish);
        assert!(wish.is_met(&snapshot));
        answer.send(snapshot.version).unwrap();
        proxy.worker.publish(snapshot);
        calling.join().unwrap()
    })
}

/// What workers ask, with a limit to waiting for it.
fn channel() -> (Wishes, mpsc::Receiver<Asked>) {
    let (wishes, mut asked) = Wishes::channel();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        while let Some(one) = asked.blocking_recv() {
            if sender.send(one).is_err() {
                return;
            }
        }
    });
    (wishes, receiver)
}

#[test]
fn a_request_waits_for_its_virtual_host() {
    let yaml = config(RDS, &ON_DEMAND.replace("LIMIT", "4s"));
    let mut compiler = incremental(&yaml);
    apply::<RouteConfiguration>(&mut compiler, "r", &answering("r", ", vhds: {config_source: {ads: {}}}"));
    assert_eq!(compiler.snapshot().listeners.len(), 0, "the server has not said which virtual hosts there are");
    assert_eq!(compiler.apply(&url::<VirtualHost>(), Vec::new(), &[], Instant::now()), []);
    let (wishes, mut asked) = channel();
    let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
    assert_eq!(get(&proxy, "own", ""), (200, "r".to_owned()));
    let answer = wished(&proxy, &mut asked, ("Late", ""), |wish| {
        let Wish::VirtualHost { name, .. } = wish else { panic!("{wish:?}") };
        assert_eq!(&**name, "r/late");
        assert!(compiler.want(wish) && compiler.wanted().virtual_hosts.iter().map(|n| &**n).eq(["r", "r/late"]));
        apply::<VirtualHost>(&mut compiler, "r/some", &format!("{{name: some, domains: [late, '*.late'], routes: [{}]}}", says("late")));
        compiler.snapshot()
    });
    assert_eq!(answer, (200, "late".to_owned()));
    assert_eq!((get(&proxy, "late", ""), get(&proxy, "x.late", ""), get(&proxy, "own", "")).0.1, "late");
    assert!(asked.try_recv().is_err(), "what is there is not asked for");
}

#[test]
fn a_virtual_host_that_there_is_not_is_waited_for_only_so_long() {
    let yaml = config(RDS, &ON_DEMAND.replace("LIMIT", "0.4s"));
    let mut compiler = incremental(&yaml);
    apply::<RouteConfiguration>(&mut compiler, "r", &answering("r", ", vhds: {config_source: {ads: {}}}"));
    assert_eq!(compiler.snapshot().listeners.len(), 0, "the server has not said which virtual hosts there are");
    assert_eq!(compiler.apply(&url::<VirtualHost>(), Vec::new(), &[], Instant::now()), []);
    let (wishes, asked) = channel();
    let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
    let began = Instant::now();
    assert_eq!(get(&proxy, "late", "").0, 404);
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
    drop(asked.recv_timeout(WAIT).unwrap());
    let began = Instant::now();
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| get(&proxy, "late", ""));
        // There is no such host.
        drop(asked.recv_timeout(WAIT).unwrap());
        assert_eq!(calling.join().unwrap().0, 404);
    });
    assert!(began.elapsed() < Duration::from_millis(350), "{:?}", began.elapsed());
}

#[test]
fn the_routes_of_a_request_are_those_of_its_scope() {
    let yaml = config(&SCOPED.replace("CONFIG", "scoped_rds: {scoped_rds_config_source: {ads: {}}}"), "");
    let mut compiler = incremental(&yaml);
    assert!(compiler.wanted().scopes);
    assert_eq!(compiler.snapshot().listeners.len(), 0, "no scope has arrived");
    let scope =
        |name: &str, key: &str| format!("{{name: {name}, key: {{fragments: [{{string_key: {key}}}]}}, route_configuration_name: {name}}}");
    apply::<ScopedRouteConfiguration>(&mut compiler, "one", &scope("one", "k1"));
    assert!(compiler.wanted().routes.contains("one"));
    assert_eq!(compiler.snapshot().listeners.len(), 0, "its routes have not");
    apply::<RouteConfiguration>(&mut compiler, "one", &answering("one", ""));
    let proxy = start_with(&yaml, compiler.snapshot());
    assert_eq!(get(&proxy, "own", "x-scope: a=b;v=k1\r\n"), (200, "one".to_owned()));
    for more in ["", "x-scope: v=k2\r\n", "x-scope: w=k1\r\n", "x-scope: k1\r\n"] {
        assert_eq!(get(&proxy, "own", more).0, 404, "{more}");
    }
    apply::<ScopedRouteConfiguration>(&mut compiler, "two", &scope("two", "k2"));
    apply::<RouteConfiguration>(&mut compiler, "two", &answering("two", ""));
    publish(&proxy.worker, compiler.snapshot());
    assert_eq!(get(&proxy, "own", "x-scope: v=k2\r\n"), (200, "two".to_owned()));
    assert_eq!(compiler.apply(&url::<ScopedRouteConfiguration>(), Vec::new(), &["one".to_owned()], Instant::now()), []);
    publish(&proxy.worker, compiler.snapshot());
    assert_eq!((get(&proxy, "own", "x-scope: v=k1\r\n").0, get(&proxy, "own", "x-scope: v=k2\r\n").0), (404, 200));
}

#[test]
fn the_routes_of_a_scope_may_be_discovered_on_demand() {
    let list = "scoped_route_configurations_list: {scoped_route_configurations: [{name: one, on_demand: true, \
                key: {fragments: [{string_key: k1}]}, route_configuration_name: r}]}";
    let yaml = config(&SCOPED.replace("CONFIG", list), &ON_DEMAND.replace("LIMIT", "4s"));
    let mut compiler = incremental(&yaml);
    assert!(compiler.wanted().routes.is_empty());
    let (wishes, mut asked) = channel();
    let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
    assert_eq!(get(&proxy, "own", "").0, 404, "it is in no scope");
    let answer = wished(&proxy, &mut asked, ("own", "x-scope: v=k1\r\n"), |wish| {
        assert!(compiler.want(wish) && compiler.wanted().routes.contains("r"));
        apply::<RouteConfiguration>(&mut compiler, "r", &answering("r", ""));
        compiler.snapshot()
    });
    assert_eq!(answer, (200, "r".to_owned()));
}

#[test]
fn filters_begin_anew_with_a_virtual_host_that_comes_late() {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3";
    let rbac = format!("{{name: envoy.filters.http.rbac, typed_config: {{'@type': {RBAC}.RBAC}}}},");
    let denies = format!(
        "typed_per_filter_config: {{envoy.filters.http.rbac: {{'@type': {RBAC}.RBACPerRoute, rbac: {{rules: {{action: DENY, policies: \
         {{all: {{permissions: [{{any: true}}], principals: [{{any: true}}]}}}}}}}}}}}}"
    );
    let yaml = config(RDS, &format!("{rbac}{}", ON_DEMAND.replace("LIMIT", "4s")));
    for (more, status) in [("", 403), ("content-length: 0\r\n", 403), ("content-length: 1\r\n\r\nx", 200)] {
        let mut compiler = awaiting_hosts(&yaml);
        let (wishes, mut asked) = channel();
        let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
        let (got, _) = wished(&proxy, &mut asked, ("late", more), |wish| {
            assert!(compiler.want(wish));
            apply::<VirtualHost>(
                &mut compiler,
                "r/late",
                &format!("{{name: late, domains: [late], routes: [{}], {denies}}}", says("late")),
            );
            compiler.snapshot()
        });
        assert_eq!(got, status, "{more:?}");
        assert!(asked.try_recv().is_err(), "what is there is not asked for");
        // Both runs are one request.
        assert_eq!(proxy.stat("http.t.downstream_rq_total"), 1);
    }
}

#[test]
fn a_virtual_host_that_comes_late_is_asked_whether_it_allows_an_upgrade() {
    let own = "upgrade_configs: [{upgrade_type: websocket, enabled: false, filters: [{name: envoy.filters.http.fault, typed_config: \
               {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 555, percentage: {numerator: 100}}}}, \
               {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}]";
    let allowing = "{match: {prefix: /}, route: {cluster: none, upgrade_configs: [{upgrade_type: websocket}]}}";
    for (listener, route, status) in [("", &*says("late"), 403), (own, &says("late"), 403), (own, allowing, 555), ("", allowing, 503)] {
        let yaml = config(&format!("{RDS}\n          {listener}"), &ON_DEMAND.replace("LIMIT", "4s"));
        let mut compiler = awaiting_hosts(&yaml);
        let (wishes, mut asked) = channel();
        let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
        let (got, _) = wished(&proxy, &mut asked, ("late", "connection: upgrade\r\nupgrade: websocket\r\n"), |wish| {
            assert!(compiler.want(wish));
            apply::<VirtualHost>(&mut compiler, "r/late", &format!("{{name: late, domains: [late], routes: [{route}]}}"));
            compiler.snapshot()
        });
        assert_eq!(got, status, "{listener} {route}");
    }
}
