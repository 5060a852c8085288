//! Virtual hosts that are discovered one by one (VHDS): each is compiled when it comes, and stands in the routes that it belongs to.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;
use lateen_proto::envoy::config::route::v3 as proto;
use lateen_proto::{Any, any};
use prost::Name;

use super::entry::decode;
use super::{Compiler, MAX_RESOURCE_BYTES, Origin, Rejected, Update, VirtualHostProto};
use crate::compile::context::Context;
use crate::compile::invalid::{Invalid, Result, Within};
use crate::compile::warming::FetchTimeout;
use crate::compile::{left_out, route, source, virtual_host};
use crate::route::VirtualHost;
use crate::{ClusterId, RouteTable, RouteTableId};

/// Whether virtual hosts of such routes can be discovered, and how long they are waited for.
pub(super) fn check(value: proto::Vhds, origin: Origin, by_delta: bool) -> Result<FetchTimeout> {
    let proto::Vhds { config_source } = value;
    let source = source::ads_only(config_source).within("config_source");
    let timeout = source.within("vhds")?;
    if origin == Origin::Static {
        return Err(Invalid::field("vhds", "is for discovered routes"));
    }
    if !by_delta {
        return Err(Invalid::field("vhds", "needs incremental discovery; use api_type DELTA_GRPC in ads_config"));
    }
    Ok(timeout)
}

/// Routes that virtual hosts are discovered for, with those that they have themselves.
#[derive(Debug)]
pub(crate) struct Base {
    table: RouteTable,
    inherited: Arc<route::Inherited>,
    /// Domains and names that are taken.
    taken: HashSet<String>,
    /// How long the first answer about them is waited for.
    pub(super) timeout: FetchTimeout,
}

impl Base {
    pub(super) fn new(sent: route::Sent<'_>, id: RouteTableId, timeout: FetchTimeout, context: &mut Context<'_>) -> Result<Self> {
        let inherited = Arc::new(route::Inherited::of(&sent.rest));
        let mut table = sent.table(context)?;
        table.discovers_hosts = Some(id);
        let exact = table.exact.keys().map(ToString::to_string);
        let suffixes = table.suffixes.iter().map(|(suffix, _)| format!("*{suffix}"));
        let prefixes = table.prefixes.iter().map(|(prefix, _)| format!("{prefix}*"));
        let all = table.catch_all.map(|_| "*".to_owned());
        let names = table.virtual_hosts.iter().map(|host| named(&host.name));
        let taken = exact.chain(suffixes).chain(prefixes).chain(all).chain(names).collect();
        Ok(Self { table, inherited, taken, timeout })
    }

    /// The table that requests see. Nothing is compiled for it.
    pub(super) fn with(&self, hosts: Option<&Hosts>) -> Result<RouteTable> {
        let mut table = self.table.clone();
        for host in hosts.into_iter().flat_map(|hosts| hosts.found.values()) {
            let id = u32::try_from(table.virtual_hosts.len()).unwrap_or(u32::MAX);
            host.domains.iter().try_for_each(|domain| route::add_domain(&mut table, domain, id))?;
            table.virtual_hosts.push(host.compiled.clone());
        }
        table.sort_wildcards();
        Ok(table)
    }
}

/// A name beside domains, none of which holds a blank.
fn named(name: &str) -> String {
    format!("name {name}")
}

/// The virtual hosts that were discovered for routes.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// By the names of their resources, `<routes>/<host>`.
    found: IndexMap<Arc<str>, Discovered>,
    /// The resource that has a domain or a name.
    taken: HashMap<String, Arc<str>>,
    /// What the routes around them say, with which they were compiled.
    inherited: Option<Arc<route::Inherited>>,
    /// The server has answered: the routes need wait no longer.
    pub(super) answered: bool,
}

#[derive(Debug)]
struct Discovered {
    body: Arc<Any>,
    /// In lower case.
    domains: Vec<String>,
    compiled: VirtualHost,
    clusters: HashSet<ClusterId>,
}

impl Discovered {
    fn compile(body: Arc<Any>, inherited: &route::Inherited, context: &mut Context<'_>) -> Result<Self> {
        let mut host: VirtualHostProto = decode(&body)?;
        let domains: Vec<String> = std::mem::take(&mut host.domains).into_iter().map(|domain| domain.to_ascii_lowercase()).collect();
        route::check_domains(&domains)?;
        context.uses.clusters.clear();
        let compiled = virtual_host::one_virtual_host(host, inherited, context)?;
        Ok(Self { body, domains, compiled, clusters: std::mem::take(&mut context.uses.clusters) })
    }

    /// What no other may have.
    fn keys(&self) -> impl Iterator<Item = String> {
        self.domains.iter().cloned().chain([named(&self.compiled.name)])
    }
}

impl Hosts {
    /// Takes one that comes; whether it is another than before.
    fn take(&mut self, base: &Base, name: &Arc<str>, body: Any, context: &mut Context<'_>) -> Result<bool> {
        if body.value.len() > MAX_RESOURCE_BYTES {
            return Err(Invalid::new(format!("has more than {MAX_RESOURCE_BYTES} bytes; split it")));
        }
        if self.found.get(name).is_some_and(|host| *host.body == body) {
            return Ok(false);
        }
        let host = Discovered::compile(Arc::new(body), &base.inherited, context)?;
        self.check(base, name, &host)?;
        self.remove(name);
        self.taken.extend(host.keys().map(|key| (key, Arc::clone(name))));
        self.found.insert(Arc::clone(name), host);
        self.inherited = Some(Arc::clone(&base.inherited));
        Ok(true)
    }

    /// Whether it takes nothing from another.
    fn check(&self, base: &Base, by: &str, host: &Discovered) -> Result<()> {
        let other = |key: &str| base.taken.contains(key) || self.taken.get(key).is_some_and(|owner| **owner != *by);
        if other(&named(&host.compiled.name)) {
            return Err(Invalid::field("name", format!("`{}` is used by another virtual host", host.compiled.name)));
        }
        let clash = host.domains.iter().position(|domain| other(domain));
        clash.map_or(Ok(()), |i| Err(Invalid::new("is already a domain of another virtual host")).within_item("domains", i))
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(host) = self.found.swap_remove(name) else { return false };
        host.keys().for_each(|key| drop(self.taken.remove(&key)));
        true
    }

    /// Other routes stand around them from now on; those are refused where they take a domain or change what no longer fits.
    pub(super) fn follow(&mut self, base: &Base, context: &mut Context<'_>) -> Result<()> {
        if let Some(key) = base.taken.iter().find(|key| self.taken.contains_key(*key)) {
            return Err(Invalid::field("virtual_hosts", format!("`{key}` is that of a virtual host that was discovered")));
        }
        if self.inherited.as_ref().is_none_or(|before| **before == *base.inherited) {
            return Ok(());
        }
        let again = |(name, host): (&Arc<str>, &Discovered)| -> Result<(Arc<str>, Discovered)> {
            Ok((Arc::clone(name), Discovered::compile(Arc::clone(&host.body), &base.inherited, context)?))
        };
        self.found = self.found.iter().map(again).collect::<Result<_>>()?;
        self.inherited = Some(Arc::clone(&base.inherited));
        Ok(())
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = ClusterId> {
        self.found.values().flat_map(|host| &host.clusters).copied()
    }
}

/// The routes that a virtual host belongs to.
fn routes_of(name: &str) -> Option<&str> {
    name.rsplit_once('/').map(|(routes, _)| routes)
}

impl Compiler {
    /// The server has said something of virtual hosts: of some, or that there are none.
    pub(super) fn note_answer(&mut self, type_url: &str, updates: &[Update], removed: &[String]) {
        if any::name_of(type_url) != VirtualHostProto::full_name() {
            return;
        }
        let said: Vec<Arc<str>> = if updates.is_empty() && removed.is_empty() {
            self.routes_with_hosts().cloned().collect()
        } else {
            let names = updates.iter().map(|update| &update.name).chain(removed);
            let routes: HashSet<&str> = names.map(|name| routes_of(name).unwrap_or(name)).collect();
            self.routes_with_hosts().filter(|name| routes.contains(&***name)).cloned().collect()
        };
        for routes in said {
            self.hosts.entry(routes).or_default().answered = true;
        }
    }

    pub(super) fn take_virtual_hosts(&mut self, updates: Vec<Update>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut by_routes: IndexMap<String, Vec<Update>> = IndexMap::new();
        for update in updates {
            match routes_of(&update.name) {
                Some(routes) => by_routes.entry(routes.to_owned()).or_default().push(update),
                None => rejected.push(Rejected { name: update.name, reason: "name: is not `<routes>/<host>`".to_owned() }),
            }
        }
        for (routes, updates) in by_routes {
            self.take_hosts_of(&routes, updates, &mut rejected);
        }
        rejected
    }

    fn take_hosts_of(&mut self, routes: &str, updates: Vec<Update>, rejected: &mut Vec<Rejected>) {
        let Self { routes: all, hosts, names, secrets, dns_caches, .. } = self;
        let Some(base) = all.get(routes).and_then(|e| e.versions.newest()).and_then(|v| v.value.base.as_deref()) else {
            // They crossed a change of the routes on the way; were they kept, nobody would ever take them away.
            return;
        };
        let hosts = hosts.entry(routes.into()).or_default();
        let mut context = Context::new(names, secrets, dns_caches, false);
        let mut changed = false;
        for Update { name, body, .. } in updates {
            left_out::take();
            match hosts.take(base, &name.as_str().into(), body, &mut context) {
                Ok(is_new) => {
                    left_out::tell(VirtualHostProto::NAME, &name);
                    changed |= is_new;
                }
                Err(invalid) => rejected.push(Rejected { name, reason: invalid.to_string() }),
            }
        }
        if changed {
            self.put_hosts(routes);
        }
    }

    /// Makes the tables again that these routes' virtual hosts are in.
    fn put_hosts(&mut self, routes: &str) {
        let Self { routes: all, hosts, .. } = self;
        let (Some(entry), hosts) = (all.get_mut(routes), hosts.get(routes)) else { return };
        for version in entry.versions.active.iter_mut().chain(&mut entry.versions.warming) {
            let Some(base) = &version.value.base else { continue };
            match base.with(hosts) {
                Ok(table) => version.value.table = Arc::new(table),
                // Only of a version that is on its way out: what it has itself the next one has not.
                Err(invalid) => tracing::debug!(routes, "virtual hosts do not fit into routes that are about to be replaced: {invalid}"),
            }
            version.value.uses.clusters.extend(hosts.into_iter().flat_map(Hosts::clusters));
        }
        self.dirty = true;
    }

    /// Virtual hosts are gone, or there are none of these names.
    pub(super) fn remove_virtual_hosts(&mut self, removed: &[String]) {
        let mut changed = HashSet::new();
        for name in removed {
            self.on_demand.virtual_hosts.remove(name.as_str());
            let Some(routes) = routes_of(name) else { continue };
            if self.hosts.get_mut(routes).is_some_and(|hosts| hosts.remove(name)) {
                changed.insert(routes);
            }
        }
        changed.into_iter().for_each(|routes| self.put_hosts(routes));
    }

    /// What must be subscribed to: the routes' own name brings the hosts that the server thinks useful.
    pub(super) fn wanted_hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        let routes: HashSet<&str> = self.routes_with_hosts().map(|name| &**name).collect();
        let asked = self.on_demand.virtual_hosts.iter();
        self.routes_with_hosts().chain(asked.filter(move |name| routes_of(name).is_some_and(|r| routes.contains(r))))
    }

    /// Whether the routes that a virtual host of this name belongs to discover theirs.
    pub(super) fn discovers(&self, name: &str) -> bool {
        let routes = routes_of(name).and_then(|routes| self.routes.get(routes));
        routes.is_some_and(|entry| entry.versions.all().any(|version| version.value.base.is_some()))
    }

    /// The virtual hosts that were discovered for these routes, as they came.
    pub fn discovered_hosts(&self, routes: &str) -> impl Iterator<Item = &Any> {
        self.hosts.get(routes).into_iter().flat_map(|hosts| hosts.found.values()).map(|host| &*host.body)
    }

    fn routes_with_hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.routes.iter().filter(|(_, e)| e.versions.all().any(|v| v.value.base.is_some())).map(|(name, _)| name)
    }

    /// Hosts of routes that are not there, or discover none, any more.
    pub(super) fn forget_hosts(&mut self) {
        if self.hosts.is_empty() && self.on_demand.virtual_hosts.is_empty() {
            return;
        }
        let routes: HashSet<Arc<str>> = self.routes_with_hosts().cloned().collect();
        self.hosts.retain(|name, _| routes.contains(name));
        self.on_demand.virtual_hosts.retain(|name| routes_of(name).is_some_and(|r| routes.contains(r)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::compile::compiler::{ListenerProto, RouteProto};
    use crate::test_support::{LISTENER, ROUTE, manager, rds_listener, update};

    const HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    const BASE: &str = "{name: r, vhds: {config_source: {ads: {}}}, virtual_hosts: [{name: own, domains: [own.test]}]}";

    fn with_routes() -> Compiler {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        compiler.set_incremental(true);
        assert!(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now).is_empty());
        assert!(compiler.apply(ROUTE, vec![update::<RouteProto>(BASE)], &[], now).is_empty());
        // There are none yet.
        assert!(compiler.apply(HOST, Vec::new(), &[], now).is_empty());
        compiler
    }

    fn host(resource: &str, text: &str) -> Update {
        Update { name: resource.to_owned(), ..update::<VirtualHostProto>(text) }
    }

    fn finds(compiler: &mut Compiler, host: &str) -> bool {
        compiler.snapshot().routes.iter().flatten().any(|table| table.virtual_host(host).is_some())
    }

    #[test]
    fn hosts_come_and_go_and_outlive_a_change_of_their_routes() {
        let (mut compiler, now) = (with_routes(), Instant::now());
        assert!(compiler.wanted().virtual_hosts.iter().map(|n| &**n).eq(["r"]));
        assert!(!finds(&mut compiler, "a.test") && finds(&mut compiler, "own.test"));
        let updates = vec![host("r/a", "{name: a, domains: [a.test]}"), host("r/b", "{name: b, domains: [b.test]}")];
        assert!(compiler.apply(HOST, updates, &[], now).is_empty());
        assert!(finds(&mut compiler, "a.test") && finds(&mut compiler, "b.test") && finds(&mut compiler, "own.test"));
        let changed = BASE.replace("own.test", "new.test");
        assert!(compiler.apply(ROUTE, vec![update::<RouteProto>(&changed)], &[], now).is_empty());
        assert!(finds(&mut compiler, "a.test") && finds(&mut compiler, "new.test") && !finds(&mut compiler, "own.test"));
        assert!(compiler.apply(HOST, Vec::new(), &["r/a".to_owned()], now).is_empty());
        assert!(!finds(&mut compiler, "a.test") && finds(&mut compiler, "b.test"));
        // A listener that goes takes all of it away.
        assert!(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now).is_empty());
        assert!(compiler.hosts.is_empty() && compiler.wanted().virtual_hosts.is_empty());
    }

    #[test]
    fn a_listener_waits_for_the_first_answer_about_its_virtual_hosts() {
        let listeners = |said: bool, updates: Vec<Update>, removed: &[String], seconds: u64| {
            let (mut compiler, now) = (Compiler::new(), Instant::now());
            compiler.set_incremental(true);
            compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now);
            compiler.apply(ROUTE, vec![update::<RouteProto>(BASE)], &[], now);
            if said {
                compiler.apply(HOST, updates, removed, now);
            }
            compiler.settle(now + std::time::Duration::from_secs(seconds));
            compiler.snapshot().listeners.len()
        };
        assert_eq!((listeners(false, vec![], &[], 1), listeners(false, vec![], &[], 20)), (0, 1), "the server has some time to answer");
        assert_eq!(listeners(true, vec![host("r/a", "{name: a, domains: [a.test]}")], &[], 1), 1);
        assert_eq!(listeners(true, vec![host("r/a", "{name: a}")], &[], 1), 1, "what is refused is an answer");
        assert_eq!(listeners(true, vec![], &["r/a".to_owned()], 1), 1);
        assert_eq!(listeners(true, vec![], &[], 1), 1);
        assert_eq!(listeners(true, vec![host("s/a", "{name: a, domains: [a.test]}")], &[], 1), 0, "that is about others");
    }

    #[test]
    fn only_what_changed_is_compiled() {
        let (mut compiler, now) = (with_routes(), Instant::now());
        let route = |compiler: &mut Compiler, host: &str| {
            let snapshot = compiler.snapshot();
            let table = snapshot.routes.iter().flatten().next().unwrap();
            Arc::clone(&table.virtual_host(host).unwrap().routes[0])
        };
        let text = |name: &str, more: &str| {
            format!("{{name: {name}, domains: [{name}.test], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}{more}}}]}}")
        };
        let both = vec![host("r/a", &text("a", "")), host("r/b", &text("b", ", name: first"))];
        assert!(compiler.apply(HOST, both, &[], now).is_empty());
        let (a, b) = (route(&mut compiler, "a.test"), route(&mut compiler, "b.test"));
        assert!(compiler.apply(HOST, vec![host("r/b", &text("b", ", name: second"))], &[], now).is_empty());
        assert!(Arc::ptr_eq(&a, &route(&mut compiler, "a.test")) && !Arc::ptr_eq(&b, &route(&mut compiler, "b.test")));
        let changed = BASE.replace("own.test", "new.test");
        assert!(compiler.apply(ROUTE, vec![update::<RouteProto>(&changed)], &[], now).is_empty());
        assert!(Arc::ptr_eq(&a, &route(&mut compiler, "a.test")), "what stands around it says the same");
        let mirrors = BASE.replace("vhds:", "request_mirror_policies: [{cluster: m}], vhds:");
        assert!(compiler.apply(ROUTE, vec![update::<RouteProto>(&mirrors)], &[], now).is_empty());
        assert!(!Arc::ptr_eq(&a, &route(&mut compiler, "a.test")));
        let taken = BASE.replace("own.test", "A.test");
        let rejected = compiler.apply(ROUTE, vec![update::<RouteProto>(&taken)], &[], now);
        assert!(rejected[0].reason.starts_with("virtual_hosts: `a.test` is that of"), "{rejected:?}");
        let snapshot = compiler.snapshot();
        // A domain that one gives up another may have.
        assert!(compiler.apply(HOST, Vec::new(), &["r/a".to_owned()], now).is_empty());
        assert!(compiler.apply(HOST, vec![host("r/c", "{name: c, domains: [a.test]}")], &[], now).is_empty());
        assert!(!Arc::ptr_eq(&snapshot, &compiler.snapshot()) && finds(&mut compiler, "a.test"));
        assert_eq!(compiler.discovered_hosts("r").count(), 2);
    }

    #[test]
    fn each_host_has_the_clusters_of_the_routes_that_it_shares() {
        let (mut compiler, now) = (with_routes(), Instant::now());
        let routes = "routes: [{match: {prefix: /}, route: {cluster: one, request_mirror_policies: [{cluster: mirror}]}}, \
            {match: {prefix: /w}, route: {weighted_clusters: {clusters: [{name: w1, weight: 1}, {name: w2, weight: 1}]}}}, \
            {match: {prefix: /h}, route: {cluster_header: x}}]";
        let sent = ["a", "b"].map(|name| host(&format!("r/{name}"), &format!("{{name: {name}, domains: [{name}.test], {routes}}}")));
        assert!(compiler.apply(HOST, sent.to_vec(), &[], now).is_empty());
        let found = &compiler.hosts["r"].found;
        assert!(Arc::ptr_eq(&found["r/a"].compiled.routes[0], &found["r/b"].compiled.routes[0]));
        assert_eq!((found["r/a"].clusters.len(), &found["r/a"].clusters), (4, &found["r/b"].clusters));
    }

    #[test]
    fn a_bad_host_hurts_only_itself() {
        let (mut compiler, now) = (with_routes(), Instant::now());
        let updates = vec![
            host("r/good", "{name: good, domains: [good.test]}"),
            host("r/field", "{name: field, domains: [f.test], routes: [{match: {safe_regex: {regex: '('}}, route: {cluster: c}}]}"),
            host("r/domain", "{name: domain, domains: [x.test, OWN.test]}"),
            host("r/twice", "{name: twice, domains: [good.test]}"),
            host("r/name", "{name: own, domains: [n.test]}"),
            host("nowhere", "{name: nowhere, domains: [y.test]}"),
        ];
        let rejected = compiler.apply(HOST, updates, &[], now);
        let reason = |name: &str| rejected.iter().find(|r| r.name == name).map(|r| r.reason.as_str()).unwrap_or_default();
        assert!(reason("r/field").starts_with("routes[0].match.safe_regex.regex: `(`"), "{rejected:?}");
        assert!(reason("r/domain").starts_with("domains[1]: is already a domain"), "{rejected:?}");
        assert!(reason("r/twice").starts_with("domains[0]: is already a domain"), "{rejected:?}");
        assert!(reason("r/name").starts_with("name: `own` is used"), "{rejected:?}");
        assert!(reason("nowhere").starts_with("name: is not"), "{rejected:?}");
        assert_eq!(rejected.len(), 5);
        assert!(finds(&mut compiler, "good.test") && !finds(&mut compiler, "x.test"));
    }

    #[test]
    fn a_host_of_no_name_is_asked_for_until_the_server_denies_it() {
        use crate::compile::Wish;
        let (mut compiler, now) = (with_routes(), Instant::now());
        let routes = compiler.names.route_table("r");
        let wish = Wish::VirtualHost { routes, host: "a".into(), name: "r/a".into() };
        assert!(compiler.want(&wish) && wish.is_wanted(&compiler.wanted()));
        assert!(compiler.apply(HOST, Vec::new(), &["r/a".to_owned()], now).is_empty());
        assert!(!wish.is_wanted(&compiler.wanted()) && !wish.is_met(&compiler.snapshot()));
        assert!(compiler.want(&wish));
        compiler.unwant(std::slice::from_ref(&wish));
        assert!(!wish.is_wanted(&compiler.wanted()));
    }

    #[test]
    fn routes_that_cannot_discover_hosts_are_refused() {
        let reason = |compiler: &mut Compiler, type_url: &str, update: Update| {
            compiler.apply(type_url, vec![update], &[], Instant::now()).remove(0).reason
        };
        let mut compiler = Compiler::new();
        assert!(reason(&mut compiler, ROUTE, update::<RouteProto>(BASE)).starts_with("vhds: needs incremental discovery"));
        compiler.set_incremental(true);
        let elsewhere = BASE.replace("ads: {}", "path: f");
        assert!(reason(&mut compiler, ROUTE, update::<RouteProto>(&elsewhere)).starts_with("vhds.config_source: is not supported"));
        let inline = rds_listener().replace(
            &manager("rds: {route_config_name: r, config_source: {ads: {}}}"),
            &manager("route_config: {name: r, vhds: {config_source: {ads: {}}}}"),
        );
        let reason = reason(&mut compiler, LISTENER, update::<ListenerProto>(&inline));
        assert!(reason.starts_with("filter_chains[0].filters[0].route_config.vhds: is for routes that are discovered"), "{reason}");
    }
}
