//! Virtual hosts that are discovered one by one (VHDS): they are merged into the routes that they belong to.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;
use lateen_proto::envoy::config::route::v3 as proto;

use super::{Compiler, MAX_RESOURCE_BYTES, Origin, Rejected, RouteProto, Update, VirtualHostProto, decode};
use crate::RouteTable;
use crate::compile::context::Context;
use crate::compile::invalid::{Invalid, Result, Within};
use crate::compile::{route, source};

/// By the names of their resources, `<routes>/<host>`.
pub(super) type Hosts = IndexMap<Arc<str>, VirtualHostProto>;

/// What the routes are merged from, where virtual hosts are discovered for them.
pub(super) fn base(mut value: RouteProto, origin: Origin, by_delta: bool) -> Result<Option<Box<RouteProto>>> {
    let Some(proto::Vhds { config_source }) = value.vhds.take() else { return Ok(None) };
    let source = source::ads_only(config_source).within("config_source");
    source.within("vhds")?;
    if origin == Origin::Static {
        return Err(Invalid::field("vhds", "is for discovered routes"));
    }
    if !by_delta {
        return Err(Invalid::field("vhds", "needs incremental discovery; use api_type DELTA_GRPC in ads_config"));
    }
    Ok(Some(Box::new(value)))
}

/// Routes with the virtual hosts that were discovered for them.
pub(super) fn merged(mut base: RouteProto, hosts: Option<&Hosts>, context: &mut Context<'_>) -> Result<RouteTable> {
    let id = context.names.route_table(&base.name);
    base.virtual_hosts.extend(hosts.into_iter().flat_map(Hosts::values).cloned());
    let mut table = route::table(base, context)?;
    table.discovers_hosts = Some(id);
    Ok(table)
}

/// The domains and names that are taken, by the resource that has them; the routes themselves have none.
#[derive(Default)]
struct Taken(HashMap<String, Option<Arc<str>>>);

impl Taken {
    fn add(&mut self, host: &VirtualHostProto, by: Option<&Arc<str>>) {
        for domain in &host.domains {
            self.0.insert(domain.to_ascii_lowercase(), by.cloned());
        }
        self.0.insert(named(host), by.cloned());
    }

    fn check(&self, host: &VirtualHostProto, by: &str) -> Result<()> {
        let other = |key: &str| self.0.get(key).is_some_and(|owner| owner.as_deref() != Some(by));
        if other(&named(host)) {
            return Err(Invalid::field("name", format!("`{}` is used by another virtual host", host.name)));
        }
        let clash = host.domains.iter().position(|domain| other(&domain.to_ascii_lowercase()));
        clash.map_or(Ok(()), |i| Err(Invalid::new("is already a domain of another virtual host")).within_item("domains", i))
    }
}

/// A name beside domains, none of which holds a blank.
fn named(host: &VirtualHostProto) -> String {
    format!("name {}", host.name)
}

impl Compiler {
    pub(super) fn take_virtual_hosts(&mut self, updates: Vec<Update>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut by_routes: IndexMap<String, Vec<(Arc<str>, Update)>> = IndexMap::new();
        for update in updates {
            match update.name.rsplit_once('/') {
                Some((routes, _)) => by_routes.entry(routes.to_owned()).or_default().push((update.name.as_str().into(), update)),
                None => rejected.push(Rejected { name: update.name, reason: "name: is not `<routes>/<host>`".to_owned() }),
            }
        }
        for (routes, updates) in by_routes {
            self.take_hosts_of(&routes, updates, &mut rejected);
        }
        rejected
    }

    fn take_hosts_of(&mut self, routes: &str, updates: Vec<(Arc<str>, Update)>, rejected: &mut Vec<Rejected>) {
        let before = self.hosts.get(routes).cloned().unwrap_or_default();
        let Some(base) = self.routes.get(routes).and_then(|e| e.versions.newest()).and_then(|v| v.value.base.clone()) else {
            // They crossed a change of the routes on the way; were they kept, nobody would ever take them away.
            return;
        };
        let mut taken = Taken::default();
        base.virtual_hosts.iter().for_each(|host| taken.add(host, None));
        before.iter().for_each(|(name, host)| taken.add(host, Some(name)));
        let mut hosts = before.clone();
        for (name, update) in updates {
            match self.checked_host(&base, &taken, &name, &update) {
                Ok(host) => {
                    taken.add(&host, Some(&name));
                    hosts.insert(name, host);
                }
                Err(invalid) => rejected.push(Rejected { name: update.name, reason: invalid.to_string() }),
            }
        }
        if hosts != before {
            self.hosts.insert(routes.into(), hosts);
            if let Err(invalid) = self.merge_hosts(routes) {
                self.hosts.insert(routes.into(), before);
                rejected.push(Rejected { name: routes.to_owned(), reason: invalid.to_string() });
            }
        }
    }

    /// A virtual host that compiles by itself and takes nothing from another.
    fn checked_host(&mut self, base: &RouteProto, taken: &Taken, name: &str, update: &Update) -> Result<VirtualHostProto> {
        if update.body.value.len() > MAX_RESOURCE_BYTES {
            return Err(Invalid::new(format!("has more than {MAX_RESOURCE_BYTES} bytes; split it")));
        }
        let host: VirtualHostProto = decode(&update.body)?;
        taken.check(&host, name)?;
        let alone = RouteProto { virtual_hosts: vec![host.clone()], ..RouteProto::clone(base) };
        let mut context = Context::new(&mut self.names, &mut self.secrets, &mut self.dns_caches, false);
        route::table(alone, &mut context).map_err(Invalid::without_first_segment)?;
        Ok(host)
    }

    /// Makes the tables again that these routes' virtual hosts are in.
    fn merge_hosts(&mut self, routes: &str) -> Result<()> {
        let Self { routes: all, hosts, names, secrets, dns_caches, .. } = self;
        let Some(entry) = all.get_mut(routes) else { return Ok(()) };
        for version in entry.versions.active.iter_mut().chain(&mut entry.versions.warming) {
            let Some(base) = &version.value.base else { continue };
            let mut context = Context::new(names, secrets, dns_caches, false);
            version.value.table = Arc::new(merged(RouteProto::clone(base), hosts.get(routes), &mut context)?);
            version.value.uses = context.uses;
        }
        self.dirty = true;
        Ok(())
    }

    /// A virtual host is gone, or there is none of that name.
    pub(super) fn remove_virtual_host(&mut self, name: &str) {
        self.on_demand.virtual_hosts.remove(name);
        let Some((routes, _)) = name.rsplit_once('/') else { return };
        if self.hosts.get_mut(routes).and_then(|hosts| hosts.shift_remove(name)).is_some() {
            // What was compiled with more compiles with less.
            let _ = self.merge_hosts(routes);
        }
    }

    /// What must be subscribed to: the routes' own name brings the hosts that the server thinks useful.
    pub(super) fn wanted_hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        let routes: HashSet<&str> = self.routes_with_hosts().map(|name| &**name).collect();
        let asked = self.on_demand.virtual_hosts.iter();
        self.routes_with_hosts().chain(asked.filter(move |name| name.rsplit_once('/').is_some_and(|(r, _)| routes.contains(r))))
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
        self.on_demand.virtual_hosts.retain(|name| name.rsplit_once('/').is_some_and(|(r, _)| routes.contains(r)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::test_support::{LISTENER, ROUTE, manager, rds_listener, update};

    const HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    const BASE: &str = "{name: r, vhds: {config_source: {ads: {}}}, virtual_hosts: [{name: own, domains: [own.test]}]}";

    fn with_routes() -> Compiler {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        compiler.set_incremental(true);
        assert!(compiler.apply(LISTENER, vec![update::<super::super::ListenerProto>(&rds_listener())], &[], now).is_empty());
        assert!(compiler.apply(ROUTE, vec![update::<RouteProto>(BASE)], &[], now).is_empty());
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
        compiler.unwant(&wish);
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
        let reason = reason(&mut compiler, LISTENER, update::<super::super::ListenerProto>(&inline));
        assert!(reason.starts_with("filter_chains[0].filters[0].route_config.vhds: is for routes that are discovered"), "{reason}");
    }
}
