//! What of a listener stays as it is when a new version comes: the chains whose messages are the same, where nothing but chains
//! differs (Envoy's in-place update). Their connections stay too.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lateen_proto::Any;
use lateen_proto::wire::pieces;

use super::tls::Waiting;
use crate::Listener;
use crate::listener::FilterChain;

// Fields of `envoy.config.listener.v3.Listener`.
const FILTER_CHAINS: u32 = 3;
const DEFAULT_FILTER_CHAIN: u32 = 25;
const FILTER_CHAIN_MATCHER: u32 = 32;

/// An encoded listener, apart from what chooses among its chains.
struct Parts<'a> {
    chains: Vec<&'a [u8]>,
    default: Option<&'a [u8]>,
    /// The other fields, as they stand.
    rest: Vec<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(body: &'a [u8]) -> Self {
        let mut parts = Self { chains: Vec::new(), default: None, rest: Vec::new() };
        for piece in pieces(body) {
            match (piece.number, piece.content) {
                (FILTER_CHAINS, Some(chain)) => parts.chains.push(chain),
                // Of one that comes in two pieces the first counts among the rest.
                (DEFAULT_FILTER_CHAIN, Some(chain)) if parts.default.is_none() => parts.default = Some(chain),
                (FILTER_CHAIN_MATCHER, Some(_)) => {}
                _ => parts.rest.push(piece.whole),
            }
        }
        parts
    }

    /// The chains with their messages, if these are all that there are.
    fn with<'c>(&self, listener: &'c Listener) -> Option<Vec<(&'a [u8], &'c Arc<FilterChain>)>> {
        let complete = self.chains.len() == listener.chains.len() && self.default.is_some() == listener.default_chain.is_some();
        complete.then(|| {
            self.chains.iter().copied().zip(&listener.chains).chain(self.default.into_iter().zip(&listener.default_chain)).collect()
        })
    }
}

/// A version in use.
pub(crate) struct Before {
    pub(crate) listener: Arc<Listener>,
    pub(crate) body: Arc<Any>,
    pub(crate) tls: Vec<Waiting>,
}

impl Before {
    /// Lets the next version go on from this one where only chains differ; `tls` is what waits for its secrets.
    pub(crate) fn continue_in(&self, listener: &mut Listener, tls: &mut Vec<Waiting>, body: &Any) {
        let (now, then) = (Parts::of(&body.value), Parts::of(&self.body.value));
        if now.rest != then.rest {
            return;
        }
        let (Some(known), Some(_)) = (then.with(&self.listener), now.with(listener)) else { return };
        let known: HashMap<_, _> = known.into_iter().collect();
        listener.lineage = Arc::clone(&self.listener.lineage);
        for (message, chain) in now.chains.iter().zip(&mut listener.chains).chain(now.default.iter().zip(&mut listener.default_chain)) {
            if let Some(same) = known.get(message) {
                *chain = Arc::clone(same);
            }
        }
        // Those that were made for nothing are gone; those that stay take their secrets as before.
        tls.retain(Waiting::is_alive);
        let kept: HashSet<_> = listener.all_chains().filter_map(|chain| chain.tls.as_ref()).map(Arc::as_ptr).collect();
        let stays = |waiting: &&Waiting| matches!(waiting, Waiting::Server(tls, _) if kept.contains(&tls.as_ptr()));
        tls.extend(self.tls.iter().filter(stays).cloned());
    }
}
