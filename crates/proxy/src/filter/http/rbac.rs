//! Role-based access control of requests.
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use lateen_snapshot::authorize::{Facts, Verdict};
use lateen_snapshot::http::RbacPerRoute;
use lateen_snapshot::matcher::Rbac;
use lateen_telemetry::envoy_names::{rbac as names, rbac_shadow as shadow_names};
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};
use serde_json::{Map, Value};

use super::{Step, per_route};
use crate::http::Exchange;
use crate::http::reply::Reply;
use crate::router::lookup;
use crate::worker::Worker;

static NAMESPACE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("envoy.filters.http.rbac"));
static COMMON: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("envoy.common"));

/// Policies with counters of their own, in one filter.
const MOST_POLICIES: usize = 4096;

/// By whether it is a shadow rule's, and the policy's name.
type Policies = HashMap<(bool, Arc<str>), Rc<Local>>;

/// What is told of an outcome, with what gave it: the addresses it is known by are theirs while they live.
struct Told {
    _config: Arc<Rbac>,
    _policy: Option<Arc<str>>,
    metadata: Arc<Value>,
}

/// By the addresses of rules and policy, whether it is a shadow rule's, and whether it allows.
type Tellings = HashMap<(usize, usize, bool, bool), Told>;

/// The counters of one filter. Routes that override its rules count here too.
pub(crate) struct Stats {
    rules: Local,
    shadow: Local,
    rules_name: BlockName,
    shadow_name: BlockName,
    policies: RefCell<Policies>,
    tellings: RefCell<Tellings>,
}

impl Stats {
    pub(crate) fn new(worker: &Worker, prefix: &str, config: &Rbac) -> Self {
        let name = |own: &str| BlockName::http_rbac(prefix, own.trim_end_matches('.'));
        let (rules_name, shadow_name) = (name(&config.stat_prefix), name(&config.shadow_stat_prefix));
        let local = |defs, name: &BlockName| worker.shard.local(&worker.registry.block(defs, name.clone()));
        Self {
            rules: local(names::DEFS, &rules_name),
            shadow: local(shadow_names::DEFS, &shadow_name),
            rules_name,
            shadow_name,
            policies: RefCell::default(),
            tellings: RefCell::default(),
        }
    }

    /// What logs and later filters are told of a verdict: the same for every request that gets it, so made once.
    fn telling(&self, filter: &Rbac, config: &Arc<Rbac>, verdict: &Verdict, shadow: bool) -> Arc<Value> {
        let policy = verdict.policy.as_ref().map_or(0, |name| name.as_ptr() as usize);
        let key = (Arc::as_ptr(config) as usize, policy, shadow, verdict.allowed);
        let mut tellings = self.tellings.borrow_mut();
        if tellings.len() >= MOST_POLICIES && !tellings.contains_key(&key) {
            // Of rules long replaced, most of them.
            tellings.clear();
        }
        let told = tellings.entry(key).or_insert_with(|| Told {
            _config: Arc::clone(config),
            _policy: verdict.policy.clone(),
            metadata: Arc::new(words(filter, config, verdict, shadow)),
        });
        Arc::clone(&told.metadata)
    }

    fn count(&self, verdict: &Verdict, shadow: bool) {
        if shadow {
            self.shadow.inc(if verdict.allowed { shadow_names::SHADOW_ALLOWED } else { shadow_names::SHADOW_DENIED });
        } else {
            self.rules.inc(if verdict.allowed { names::ALLOWED } else { names::DENIED });
        }
    }

    fn count_policy(&self, exchange: &Exchange<'_>, verdict: &Verdict, shadow: bool) {
        let Some(policy) = &verdict.policy else { return };
        let mut policies = self.policies.borrow_mut();
        let stats = match policies.get(&(shadow, Arc::clone(policy))) {
            Some(known) => Rc::clone(known),
            None if policies.len() >= MOST_POLICIES => return,
            None => {
                let under = if shadow { &self.shadow_name } else { &self.rules_name };
                let name = under.clone().below("policy").below(policy);
                let defs = if shadow { shadow_names::DEFS } else { names::DEFS };
                let made = Rc::new(exchange.worker.shard.local(&exchange.worker.registry.block(defs, name)));
                policies.insert((shadow, Arc::clone(policy)), Rc::clone(&made));
                made
            }
        };
        stats.inc(match (shadow, verdict.allowed) {
            (false, true) => names::ALLOWED,
            (false, false) => names::DENIED,
            (true, true) => shadow_names::SHADOW_ALLOWED,
            (true, false) => shadow_names::SHADOW_DENIED,
        });
    }
}

pub(super) fn on_request(exchange: &mut Exchange<'_>, filter: &Arc<Rbac>) -> Step {
    let config = match per_route(exchange, |p| p.rbac.as_ref()).as_deref() {
        Some(RbacPerRoute::Disabled) => return Step::Continue,
        Some(RbacPerRoute::Override(other)) => Arc::clone(other),
        None => Arc::clone(filter),
    };
    if config.rules.is_none() && config.shadow.is_none() {
        return Step::Continue;
    }
    let conn = exchange.conn;
    let head = lookup::head_of(&exchange.request);
    let facts = Facts {
        head: Some(&head),
        destination: conn.local,
        direct_remote: conn.direct_remote.ip(),
        connection_remote: conn.remote.ip(),
        remote: exchange.info.remote.ip(),
        source_port: exchange.info.remote.port(),
        peer: conn.peer(),
        server_name: conn.server_name.as_deref(),
        metadata: Some(&exchange.info.metadata),
    };
    let shadow = config.shadow.as_ref().map(|rules| rules.evaluate(&facts));
    let verdict = config.rules.as_ref().map(|rules| rules.evaluate(&facts));
    if let Some(verdict) = &shadow {
        tell(exchange, filter, &config, verdict, true);
    }
    let Some(verdict) = verdict else { return Step::Continue };
    tell(exchange, filter, &config, &verdict, false);
    if let Some(log) = verdict.log {
        exchange.info.metadata.set(&COMMON, "access_log_hint", Value::Bool(log));
    }
    if verdict.allowed {
        return Step::Continue;
    }
    let details = details::rbac_denied(verdict.policy.as_deref());
    Step::Reply(Reply::new(403, "RBAC: access denied", details, ResponseFlags::NONE))
}

/// Counts a verdict, and notes it for logs and later filters.
fn tell(exchange: &mut Exchange<'_>, filter: &Arc<Rbac>, config: &Arc<Rbac>, verdict: &Verdict, shadow: bool) {
    let Some(stats) = exchange.hcm.rbac(filter) else { return };
    stats.count(verdict, shadow);
    if config.tracks_policies {
        stats.count_policy(exchange, verdict, shadow);
    }
    exchange.info.metadata.merge(&NAMESPACE, &stats.telling(filter, config, verdict, shadow));
}

/// A verdict as dynamic metadata.
fn words(filter: &Rbac, config: &Rbac, verdict: &Verdict, shadow: bool) -> Value {
    let (own, listener, kind) = match shadow {
        true => (&config.shadow_stat_prefix, &filter.shadow_stat_prefix, "shadow"),
        false => (&config.stat_prefix, &filter.stat_prefix, "enforced"),
    };
    let prefix = if own.is_empty() { listener } else { own };
    let mut words = Map::new();
    if let Some(policy) = &verdict.policy {
        words.insert(format!("{prefix}{kind}_effective_policy_id"), Value::from(&**policy));
    }
    let result = if verdict.allowed { "allowed" } else { "denied" };
    words.insert(format!("{prefix}{kind}_engine_result"), Value::from(result));
    Value::Object(words)
}
