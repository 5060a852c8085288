//! Envoy's own list, as far as it is about names that there are here.
use super::Found;
use std::ops::Range;

/// Labels by pattern: `$` is the label's word, `*` any word, and `**` at the end one word or more. The metric's name is the last.
const PATTERNS: [(&str, &str); 17] = [
    ("rbac_prefix", "$.rbac.**"),
    ("local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    ("rbac_policy_name", "http.*.rbac.policy.$.*"),
    ("rbac_policy_name", "http.*.rbac.*.policy.$.*"),
    ("rbac_http_prefix", "http.*.rbac.$.**"),
    ("grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    ("ext_authz_prefix", "http.*.ext_authz.$.**"),
    ("cluster_name", "cluster.$.**"),
    ("http_conn_manager_prefix", "http.$.**"),
    ("tcp_prefix", "tcp.$.**"),
    ("ratelimit_prefix", "ratelimit.$.**"),
    ("local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    ("connection_limit_prefix", "connection_limit.$.**"),
    ("fault_downstream_cluster", "http.*.fault.$.**"),
];

impl Found<'_> {
    pub(super) fn envoys(&mut self) {
        let words = words(self.dotted);
        for (key, pattern) in PATTERNS {
            let Some(value) = matched(pattern, self.dotted, &words) else { continue };
            // The policies of a filter without a prefix.
            if key == "rbac_http_prefix" && self.dotted.get(value.clone()) == Some("policy") {
                continue;
            }
            self.word(key, value);
        }
        if let Some(rest) = self.dotted.strip_prefix("listener.") {
            self.listener(rest);
        }
    }

    /// What follows `listener.`: an address with its dots, or one word.
    fn listener(&mut self, rest: &str) {
        let start = self.dotted.len() - rest.len();
        if let Some((before, after)) = rest.split_once(".http.")
            && let Some(end @ 1..) = after.find('.')
        {
            let at = start + before.len() + ".http.".len();
            self.word("http_conn_manager_prefix", at..at + end);
        }
        if let Some(end @ 1..) = address(rest).or_else(|| rest.find('.')) {
            self.word("listener_address", start..start + end);
        }
    }
}

/// Where the words of a name stand; the last is empty, in the place of the metric's name.
fn words(dotted: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    let word = |text: &str| {
        let word = start..start + text.len();
        start = word.end + 1;
        word
    };
    dotted.split('.').map(word).collect()
}

/// Where the label stands that a pattern finds.
fn matched(pattern: &str, dotted: &str, words: &[Range<usize>]) -> Option<Range<usize>> {
    let (mut words, mut value) = (words.iter(), None);
    for wanted in pattern.split('.') {
        let word = words.next()?;
        match wanted {
            "**" => return value,
            "*" => {}
            "$" => value = Some(word.clone()),
            text if dotted.get(word.clone()) == Some(text) => {}
            _ => return None,
        }
    }
    value.filter(|_| words.next().is_none())
}

/// The length of an IPv4 address with its port (`127.0.0.1_80`) in front of a dot.
fn address(text: &str) -> Option<usize> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mut words = text.splitn(5, '.');
    let mut length = 3;
    for _ in 0..3 {
        length += words.next().filter(|word| word.len() <= 3 && number(word))?.len();
    }
    let last = words.next()?;
    let (end, port) = last.split_once('_')?;
    words.next()?;
    (end.len() <= 3 && number(end) && number(port)).then_some(length + last.len())
}
