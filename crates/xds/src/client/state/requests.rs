//! What is to be said about one type: subscriptions, and answers to what came.
use std::collections::BTreeSet;

use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{Mode, TypeState};
use crate::types::WILDCARD;

impl TypeState {
    pub(super) fn has_request(&self, mode: Mode) -> bool {
        if !self.opened {
            return self.wildcard || !self.names.is_empty();
        }
        let changed = match mode {
            Mode::Delta => !self.subscribe.is_empty() || !self.unsubscribe.is_empty(),
            // A repeated wish for a name cannot be said in this mode: the server would answer nothing.
            Mode::Sotw => self.names_changed,
        };
        changed || !self.feedback.is_empty()
    }

    /// What was given up and is wanted again: the next request says the one, the request after it the other.
    fn take_given_up(&mut self) -> BTreeSet<String> {
        let both: BTreeSet<String> = self.subscribe.intersection(&self.unsubscribe).cloned().collect();
        self.subscribe.retain(|name| !both.contains(name));
        both
    }

    pub(super) fn delta_request(&mut self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest { type_url: self.type_url.clone(), ..Default::default() };
        if self.opened {
            let later = self.take_given_up();
            request.resource_names_subscribe = std::mem::replace(&mut self.subscribe, later).into_iter().collect();
            request.resource_names_unsubscribe = std::mem::take(&mut self.unsubscribe).into_iter().collect();
            if let Some(feedback) = self.feedback.pop_front() {
                request.response_nonce = feedback.nonce;
                request.error_detail = feedback.error;
            }
        } else {
            self.opened = true;
            request.resource_names_subscribe = self.all_names();
            request.initial_resource_versions = self.accepted.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        }
        request
    }

    pub(super) fn sotw_request(&mut self) -> DiscoveryRequest {
        let feedback = if self.opened { self.feedback.pop_front() } else { None };
        self.opened = true;
        let later = self.take_given_up();
        let mut resource_names = self.all_names();
        resource_names.retain(|name| !later.contains(name));
        self.names_changed = !later.is_empty();
        self.subscribe.clear();
        self.unsubscribe.clear();
        let (nonce, error_detail) = match feedback {
            Some(feedback) => (feedback.nonce, feedback.error),
            None => (self.nonce.clone(), None),
        };
        DiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names,
            version_info: self.version.clone(),
            response_nonce: nonce,
            error_detail,
            ..Default::default()
        }
    }

    /// A wildcard alone is said by naming nothing, which every server knows; `*` only next to names.
    fn all_names(&self) -> Vec<String> {
        let star = (self.wildcard && !self.names.is_empty()).then(|| WILDCARD.to_owned());
        star.into_iter().chain(self.names.iter().cloned()).collect()
    }
}
