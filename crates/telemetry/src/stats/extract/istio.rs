//! The list in Istio's bootstrap (`stats_tags` in `envoy_bootstrap.json`), which has regular expressions only. Most look for
//! something anywhere: `memcache.default.` in a cluster's name has the label `cache`.
use super::Found;

impl Found<'_> {
    pub(super) fn istios(&mut self) {
        let dotted = self.dotted;
        if let Some(last) = dotted.strip_prefix("cluster.").and_then(|rest| rest.rfind(';')).filter(|last| *last > 0) {
            self.tag("cluster_name", 8..8 + last, 7..9 + last);
        }
        self.anywhere("cache", "cache.", ".");
        self.anywhere("component", "component.", ".");
        self.anywhere("tag", "tag.", ";.");
        self.anywhere("wasm_filter", "wasm_filter.", ".");
        self.one_of("authz_enforce_result", "rbac", ".", ["allowed", "denied"], "");
        self.one_of("authz_dry_run_action", "", ".istio_dry_run_", ["allow", "deny"], "_");
        self.one_of("authz_dry_run_result", "", ".shadow_", ["allowed", "denied"], "");
        if let Some(rest) = dotted.strip_prefix("http.")
            && let Some((value, next)) = rest.split_once(';')
            && next.starts_with('.')
            && words(value)
        {
            self.tag("http_conn_manager_prefix", 5..5 + value.len(), 5..5 + value.len() + 2);
        }
        // All that stands between `tcp.` and the metric is a prefix, whatever it was.
        if dotted.len() > "tcp.".len() && dotted.starts_with("tcp.") {
            self.word("tcp_prefix", 4..dotted.len() - 1);
        }
        if let Some(rest) = dotted.strip_prefix("listener.") {
            self.listener_prefixes(rest);
        }
    }

    fn listener_prefixes(&mut self, rest: &str) {
        let start = self.dotted.len() - rest.len();
        let managers = self.dotted.match_indices(".http.").map(|(at, found)| at + found.len());
        let mut named = managers.filter_map(|at| Some((at, address(self.dotted.get(at..)?)?)));
        if let Some((at, length)) = named.next() {
            self.word("http_conn_manager_listener_prefix", at..at + length);
        }
        if let Some(length) = address(rest) {
            self.word("listener_address", start..start + length);
        }
    }

    /// Takes out `start`, at least one character that is the label, and `end`.
    fn anywhere(&mut self, key: &'static str, start: &str, end: &str) {
        let Some(from) = self.dotted.find(start) else { return };
        let value = from + start.len();
        let Some(first) = self.dotted.get(value..).and_then(|rest| rest.chars().next()) else { return };
        let least = value + first.len_utf8();
        if let Some(length) = self.dotted.get(least..).and_then(|rest| rest.find(end)) {
            self.tag(key, value..least + length, from..least + length + end.len());
        }
    }

    /// Takes out `start`, one of two labels and `end`, where it stands after `before`.
    fn one_of(&mut self, key: &'static str, before: &str, start: &str, values: [&str; 2], end: &str) {
        let looked_for = format!("{before}{start}");
        for (at, _) in self.dotted.match_indices(&looked_for) {
            let value = at + looked_for.len();
            let rest = self.dotted.get(value..).unwrap_or_default();
            let is = |text: &&&str| rest.strip_prefix(**text).is_some_and(|rest| rest.starts_with(end));
            if let Some(text) = values.iter().find(is) {
                let stop = value + text.len();
                return self.tag(key, value..stop, at + before.len()..stop + end.len());
            }
        }
    }
}

fn words(value: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    value.bytes().all(|b| word(b) || b == b'.') || value.bytes().all(|b| word(b) || b"[]:".contains(&b))
}

/// The length of what may be an address (`0.0.0.0_80`, `[__1]_80`) in front of a dot.
fn address(text: &str) -> Option<usize> {
    let run = |of: fn(&u8) -> bool| text.bytes().take_while(of).count();
    let v4 = run(|b| b.is_ascii_digit() || b"_.".contains(b));
    if let Some(dot) = text.get(..v4).and_then(|run| run.rfind('.')) {
        return Some(dot);
    }
    let v6 = run(|b| b.is_ascii_hexdigit() || b"_[]".contains(b));
    text.get(v6..)?.starts_with('.').then_some(v6)
}
