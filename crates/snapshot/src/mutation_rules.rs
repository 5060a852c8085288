//! Which headers another server may change (Envoy `HeaderMutationRules`).
use regex::Regex;

/// The rules; the defaults are Envoy's.
#[derive(Debug, Clone, Default)]
pub struct MutationRules {
    /// `host` and the pseudo headers too.
    pub allow_all_routing: bool,
    /// `x-envoy-` headers too.
    pub allow_envoy: bool,
    /// No pseudo headers.
    pub disallow_system: bool,
    pub disallow_all: bool,
    pub allow: Option<Regex>,
    pub disallow: Option<Regex>,
    /// What is not allowed fails the exchange instead of being left out.
    pub disallow_is_error: bool,
}

impl MutationRules {
    /// Whether a header of that name, in lower case, may be set or removed.
    pub fn allows(&self, name: &str) -> bool {
        let matches = |regex: &Option<Regex>| regex.as_ref().is_some_and(|r| r.is_match(name));
        if matches(&self.disallow) {
            return false;
        }
        if matches(&self.allow) {
            return true;
        }
        let routing = matches!(name, "host" | ":authority" | ":scheme" | ":method");
        !(self.disallow_all
            || (routing && !self.allow_all_routing)
            || (self.disallow_system && name.starts_with(':'))
            || (name.starts_with("x-envoy-") && !self.allow_envoy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(text: &str) -> Option<Regex> {
        Some(Regex::new(text).unwrap())
    }

    #[test]
    fn routing_and_envoys_own_headers_are_for_those_that_may() {
        let rules = MutationRules::default();
        let allowed = |rules: &MutationRules, names: &[&str]| names.iter().map(|n| rules.allows(n)).collect::<Vec<_>>();
        let names = ["x-a", "host", ":method", ":path", ":status", "x-envoy-b"];
        assert_eq!(allowed(&rules, &names), [true, false, false, true, true, false]);
        let all = MutationRules { allow_all_routing: true, allow_envoy: true, ..Default::default() };
        assert_eq!(allowed(&all, &names), [true; 6]);
        let none = MutationRules { disallow_system: true, ..all.clone() };
        assert_eq!(allowed(&none, &names), [true, true, false, false, false, true]);
        assert_eq!(allowed(&MutationRules { disallow_all: true, ..all.clone() }, &names), [false; 6]);
        let some = MutationRules { allow: regex("^x-envoy-b$"), disallow: regex("^x-a$"), disallow_all: true, ..Default::default() };
        assert_eq!(allowed(&some, &names), [false, false, false, false, false, true]);
    }
}
