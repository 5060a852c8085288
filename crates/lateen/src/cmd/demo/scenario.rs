//! The demo's YAML, and the five things to try on it.

/// The services, their rules and the traffic.
pub(super) const BOOKSTORE: &str = include_str!("../../../../../demo/bookstore.yaml");

/// A change to make and where its effect shows.
pub(super) struct Try {
    /// Names the file in `demo/`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    yaml: &'static str,
    /// What to run afterwards, `{lateen}` and `{url}` filled in.
    pub(super) then: &'static str,
}

pub(super) const TRIES: [Try; 5] = [
    Try {
        name: "canary",
        title: "Canary: one request in ten to reviews v2",
        yaml: include_str!("../../../../../demo/canary.yaml"),
        then: "{lateen} app load -u {url} -n 200 -r 100",
    },
    Try {
        name: "header",
        title: "Dark launch: only the user ada sees reviews v3",
        yaml: include_str!("../../../../../demo/header.yaml"),
        then: "{lateen} app get -H 'end-user: ada' {url}",
    },
    Try {
        name: "fault",
        title: "Chaos: calls to catalog are slow or fail",
        yaml: include_str!("../../../../../demo/fault.yaml"),
        then: "{lateen} app load -u {url} -n 200 -r 100",
    },
    Try {
        name: "mirror",
        title: "Shadow traffic: v1 answers, v3 gets a copy",
        yaml: include_str!("../../../../../demo/mirror.yaml"),
        then: "{lateen} exec deploy/reviews-v3 -- {self} app get http://127.0.0.1:8080/count",
    },
    Try {
        name: "strict",
        title: "Mutual TLS only: the visitor, who has no sidecar, is refused",
        yaml: include_str!("../../../../../demo/strict.yaml"),
        then: "{lateen} exec deploy/visitor -- {self} app get http://reviews:8080/",
    },
];

/// What `lateen demo show` knows.
pub(super) fn names() -> Vec<&'static str> {
    std::iter::once("bookstore").chain(TRIES.iter().map(|t| t.name)).collect()
}

pub(super) fn yaml(name: &str) -> Option<&'static str> {
    if name == "bookstore" {
        return Some(BOOKSTORE);
    }
    TRIES.iter().find(|t| t.name == name).map(|t| t.yaml)
}

#[cfg(test)]
mod tests {
    use lateen_model::{Limits, Severity, analyze, parse};

    use super::*;

    #[test]
    fn every_file_of_the_demo_is_free_of_mistakes() {
        for name in names() {
            let parsed = parse(name, yaml(name).unwrap().as_bytes(), &Limits::default());
            let (resources, mut found) = lateen_model::load::gather(parsed);
            if name == "bookstore" {
                found.extend(analyze(&resources));
            }
            found.retain(|d| d.severity > Severity::Info);
            assert!(found.is_empty(), "{name}: {found:?}");
            assert!(!resources.is_empty(), "{name}");
        }
    }
}
