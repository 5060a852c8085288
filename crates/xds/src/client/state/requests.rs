//! What is to be said about one type: subscriptions, and answers to what came.
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

    pub(super) fn delta_request(&mut self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest { type_url: self.type_url.clone(), ..Default::default() };
        if self.opened {
            request.resource_names_subscribe = std::mem::take(&mut self.subscribe).into_iter().collect();
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
        self.names_changed = false;
        self.subscribe.clear();
        self.unsubscribe.clear();
        let (nonce, error_detail) = match feedback {
            Some(feedback) => (feedback.nonce, feedback.error),
            None => (self.nonce.clone(), None),
        };
        DiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names: self.all_names(),
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
