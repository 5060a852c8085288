use proptest::prelude::*;

use super::*;
use crate::http::HeaderChanges;
use crate::route::Domains;
use crate::test_support::route_table;

#[test]
fn the_most_specific_domain_wins() {
    let table = route_table(
        "name: r
virtual_hosts:
- {name: exact, domains: [a.foo.com, 'a.foo.com:8080']}
- {name: suffix, domains: ['*.foo.com']}
- {name: longer, domains: ['*.b.foo.com', '*-bar.foo.com']}
- {name: prefix, domains: ['a.foo.*', 'x.*']}
- {name: any, domains: ['*']}
",
    );
    for (host, expected) in [
        ("a.foo.com", "exact"),
        ("A.FOO.com", "exact"),
        ("a.foo.com:8080", "exact"),
        ("a.foo.com:81", "prefix"),
        ("z.foo.com", "suffix"),
        ("z.b.foo.com", "longer"),
        ("z-bar.foo.com", "longer"),
        // A wildcard stands for at least one character.
        ("-bar.foo.com", "suffix"),
        (".foo.com", "any"),
        ("foo.com", "any"),
        ("a.foo.org", "prefix"),
        ("x.y", "prefix"),
        ("x.", "any"),
        ("", "any"),
    ] {
        assert_eq!(&*table.virtual_host(host).unwrap().name, expected, "{host}");
    }
}

#[test]
fn ports_are_ignored_when_asked() {
    let table = route_table("{name: r, ignore_port_in_host_matching: true, virtual_hosts: [{name: v, domains: [a.b, '[::1]']}]}");
    for host in ["a.b", "a.b:80", "A.B:1", "[::1]:80", "[::1]"] {
        assert!(table.virtual_host(host).is_some(), "{host}");
    }
    assert!(table.virtual_host("a.b:x").is_none());
}

#[test]
fn long_hosts_are_looked_up_as_well() {
    let host = "A".repeat(1000) + ".foo.com";
    let table = route_table("{name: r, virtual_hosts: [{name: v, domains: ['*.foo.com']}]}");
    assert!(table.virtual_host(&host).is_some());
}

/// The rules, word for word, without any index.
fn naive(domains: &[String], host: &str) -> Option<usize> {
    let host = host.to_ascii_lowercase();
    let by = |test: &dyn Fn(&str) -> Option<usize>| {
        domains.iter().enumerate().filter_map(|(i, d)| test(d).map(|length| (length, i))).max_by_key(|(length, _)| *length).map(|(_, i)| i)
    };
    by(&|d| (d == host).then_some(0))
        .or_else(|| by(&|d| d.strip_prefix('*').filter(|s| !s.is_empty() && host.len() > s.len() && host.ends_with(s)).map(str::len)))
        .or_else(|| by(&|d| d.strip_suffix('*').filter(|p| !p.is_empty() && host.len() > p.len() && host.starts_with(p)).map(str::len)))
        .or_else(|| by(&|d| (d == "*").then_some(0)))
}

fn table(domains: &[String]) -> RouteTable {
    let mut table = RouteTable {
        discovers_hosts: None,
        name: "t".into(),
        virtual_hosts: Vec::new(),
        exact: Domains::default(),
        suffixes: Vec::new(),
        prefixes: Vec::new(),
        catch_all: None,
        vhost_header: None,
        ignore_path_parameters: false,
        internal_only_headers: Vec::new(),
        per_route: Default::default(),
        ignore_port_in_host: false,
        headers: HeaderChanges::default(),
        most_specific_header_mutations_wins: false,
    };
    for (index, domain) in domains.iter().enumerate() {
        let id = u32::try_from(index).unwrap();
        match domain.as_str() {
            "*" => table.catch_all = Some(id),
            d if d.starts_with('*') => table.suffixes.push((d[1..].into(), id)),
            d if d.ends_with('*') => table.prefixes.push((d[..d.len() - 1].into(), id)),
            d => drop(table.exact.insert(d.into(), id)),
        }
    }
    table.sort_wildcards();
    table
}

proptest! {
    #[test]
    fn lookup_agrees_with_the_rules(domains in prop::collection::hash_set("(\\*)?[ab.]{1,4}|[ab.]{1,4}\\*|\\*", 0..12), host in "[abAB.]{0,6}") {
        let domains: Vec<String> = domains.into_iter().collect();
        let table = table(&domains);
        prop_assert_eq!(table.search_any_case(&host).map(|i| i as usize), naive(&domains, &host), "{:?} {}", domains, host);
    }
}

#[test]
fn parameters_are_cut_off_every_part_of_a_path() {
    let cut = |path: &str| without_parameters(path).into_owned();
    assert_eq!([cut("/a/b"), cut("/a;x=1/b;y"), cut("/a/;x/b")], ["/a/b", "/a/b", "/a//b"]);
}
