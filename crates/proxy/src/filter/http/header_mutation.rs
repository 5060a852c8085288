//! Headers changed as configured, by listener and by route (Envoy header_mutation filter).
use std::sync::Arc;

use lateen_snapshot::header_mutation::{Edit, HeaderMutation, Mutations};

use super::{all_per_route, has_body};
use crate::filter::http::body::{Piece, Source, Stage};
use crate::http::message::{Frame, Response};
use crate::http::{Exchange, Info};
use crate::router::changes;

/// The listener's changes, then those of the routes: the most general last unless the most specific is to win.
fn in_force(exchange: &Exchange<'_>, config: &HeaderMutation) -> Vec<Arc<Mutations>> {
    let mut routes = all_per_route(exchange, |p| p.header_mutation.as_ref());
    if config.most_specific_wins {
        routes.reverse();
    }
    std::iter::once(Arc::clone(&config.mutations)).chain(routes).collect()
}

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &HeaderMutation) {
    let all = in_force(exchange, config);
    for edit in all.iter().flat_map(|m| &m.request) {
        match edit {
            Edit::Change(change) => changes::of_request(exchange, change),
            Edit::RemoveMatching(_) => edit.remove_from(&mut exchange.request.headers),
        }
    }
    if exchange.request.has_body() && all.iter().any(|m| !m.request_trailers.is_empty()) {
        exchange.change_request_body(Trailers { all, response: false }, false);
    }
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, config: &HeaderMutation, response: &mut Response) {
    let all = in_force(exchange, config);
    for edit in all.iter().flat_map(|m| &m.response) {
        match edit {
            Edit::Change(change) => changes::of_response(exchange, change, &mut response.headers),
            Edit::RemoveMatching(_) => edit.remove_from(&mut response.headers),
        }
    }
    if has_body(exchange, response) && all.iter().any(|m| !m.response_trailers.is_empty()) {
        exchange.change_response_body(Trailers { all, response: true });
    }
}

/// Changes what comes behind a body, where something does.
struct Trailers {
    all: Vec<Arc<Mutations>>,
    response: bool,
}

impl Stage for Trailers {
    fn poll_piece(&mut self, cx: &mut std::task::Context<'_>, info: &mut Info, source: &mut dyn Source) -> std::task::Poll<Piece> {
        let piece = std::task::ready!(source.poll_piece(cx, info));
        let Some(Ok(Frame::Trailers(mut map))) = piece else { return std::task::Poll::Ready(piece) };
        for edit in self.all.iter().flat_map(|m| if self.response { &m.response_trailers } else { &m.request_trailers }) {
            match edit {
                Edit::Change(change) => changes::fixed(change, &mut map),
                Edit::RemoveMatching(_) => edit.remove_from(&mut map),
            }
        }
        std::task::Poll::Ready(Some(Ok(Frame::Trailers(map))))
    }
}
