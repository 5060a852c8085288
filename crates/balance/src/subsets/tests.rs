use super::*;
use crate::host::{Address, HostSet, Locality};
use crate::subset::Label;

fn entry(text: &str) -> Entry {
    let (key, value) = text.split_once('=').unwrap();
    (key.into(), value.into())
}

fn criteria(text: &str) -> Criteria {
    Criteria::new(text.split_whitespace().map(entry), None)
}

/// `k=v` pairs; `k=a|b` is a list.
fn labels(text: &str) -> Labels {
    let label = |(key, value): Entry| {
        let items = value.contains('|').then(|| value.split('|').map(Into::into).collect());
        (key, Label { value, items })
    };
    text.split_whitespace().map(entry).map(label).collect()
}

fn selector(keys: &str, fallback: Option<SelectorFallback>) -> Selector {
    Selector { keys: keys.split_whitespace().map(Into::into).collect(), single_host_per_subset: false, fallback }
}

fn by(keys: &[&str]) -> SubsetSettings {
    SubsetSettings { selectors: keys.iter().map(|k| selector(k, None)).collect(), ..SubsetSettings::default() }
}

fn cluster(hosts: &[&str]) -> (HostSet, Vec<Labels>) {
    let host = |i| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into())));
    (HostSet::flat((0..hosts.len() as u16).map(host).collect()), hosts.iter().map(|text| labels(text)).collect())
}

fn divide(settings: &SubsetSettings, hosts: &[&str]) -> Subsets {
    let (set, labels) = cluster(hosts);
    let member = |(host, labels)| Labelled { priority: 0, locality: 0, host, labels: Some(labels) };
    Subsets::new(settings, &set.priorities, set.hosts().zip(&labels).map(member))
}

/// Ports of a subset's hosts for each step; `any` and `default` by name.
fn found(settings: &SubsetSettings, hosts: &[&str], asked: &Criteria) -> Vec<String> {
    let subsets = divide(settings, hosts);
    let ports = |priorities: &[Priority]| -> String {
        let hosts = priorities.iter().flat_map(|p| &p.localities).flat_map(|l| &l.hosts);
        hosts.map(|h| h.address.to_string().rsplit(':').next().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    let shown = |step: Step| match step.target {
        Target::Any => format!("any {:?}", step.via),
        Target::Default => format!("default {} {:?}", ports(subsets.default_subset()), step.via),
        Target::Subset(index) => match subsets.get(index).unwrap() {
            Subset::Many(priorities) => ports(priorities),
            Subset::One(host) => format!("one {}", host.address),
        },
    };
    subsets.steps(settings, asked).into_iter().map(shown).collect()
}

#[test]
fn a_request_finds_the_hosts_with_the_same_values_and_only_by_a_selectors_keys() {
    let settings = by(&["version", "stage version"]);
    let hosts = ["version=1", "version=2 stage=prod", "version=1 stage=prod", "stage=prod"];
    assert_eq!(found(&settings, &hosts, &criteria("version=1")), ["0,2"]);
    assert_eq!(found(&settings, &hosts, &criteria("version=1 stage=prod")), ["2"]);
    assert!(found(&settings, &hosts, &criteria("stage=prod")).is_empty(), "no selector has this key alone");
    assert!(found(&settings, &hosts, &criteria("version=3")).is_empty());
    assert!(found(&settings, &hosts, &criteria("")).is_empty());
}

#[test]
fn a_fallback_serves_what_finds_no_subset() {
    let hosts = ["version=1", "version=2"];
    let any = SubsetSettings { fallback: Fallback::AnyEndpoint, ..by(&["version"]) };
    assert_eq!(found(&any, &hosts, &criteria("version=3")), ["any Fallback"]);
    assert_eq!(found(&any, &hosts, &criteria("")), ["any Fallback"]);
    assert_eq!(found(&any, &hosts, &criteria("version=2")), ["1"], "a subset with members is final");
    let default = SubsetSettings {
        fallback: Fallback::DefaultSubset,
        default_subset: vec![entry("version=2")],
        panic_mode_any: true,
        ..by(&["version"])
    };
    assert_eq!(found(&default, &hosts, &criteria("stage=x")), ["default 1 Fallback", "any Panic"]);
}

#[test]
fn a_selector_may_fall_back_otherwise() {
    let hosts = ["a=1 b=1", "a=1", "c=1"];
    let with = |fallback| SubsetSettings {
        fallback: Fallback::AnyEndpoint,
        selectors: vec![selector("a b", Some(fallback)), selector("a", None), selector("c", Some(SelectorFallback::Plain(Fallback::None)))],
        ..SubsetSettings::default()
    };
    let keys = with(SelectorFallback::Keys(vec!["a".into()]));
    assert_eq!(found(&keys, &hosts, &criteria("a=1 b=2")), ["0,1"], "again with `a` alone");
    assert_eq!(found(&keys, &hosts, &criteria("a=9 b=2")), ["any Fallback"]);
    assert!(found(&keys, &hosts, &criteria("c=2")).is_empty());
    let default = with(SelectorFallback::Plain(Fallback::DefaultSubset));
    assert_eq!(found(&default, &hosts, &criteria("a=2 b=2")), ["default 0,1,2 SelectorFallback"]);
}

#[test]
fn a_list_may_stand_for_each_of_its_items() {
    let hosts = ["v=1|2 s=x|y", "v=2 s=x"];
    let whole = by(&["v"]);
    assert_eq!(found(&whole, &hosts, &criteria("v=1|2")), ["0"]);
    let each = SubsetSettings { list_as_any: true, default_subset: vec![entry("s=y")], ..by(&["v", "s v"]) };
    assert_eq!(found(&each, &hosts, &criteria("v=2")), ["0,1"]);
    assert_eq!(found(&each, &hosts, &criteria("v=2 s=y")), ["0"]);
    assert_eq!(divide(&each, &hosts).len(), 2 + 4);
    let many = format!("v={} s={}", vec!["1|2"; 40].join("|"), (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join("|"));
    assert!(divide(&each, &[&many]).len() <= MOST_PER_HOST + 100, "a host cannot make subsets without end");
}

#[test]
fn redundant_keys_are_left_out_where_that_is_allowed() {
    let hosts = ["v=1 x=7"];
    assert!(found(&by(&["v"]), &hosts, &criteria("v=1 z=2")).is_empty());
    let lenient = SubsetSettings { allow_redundant_keys: true, ..by(&["v x", "v"]) };
    assert_eq!(found(&lenient, &hosts, &criteria("v=1 z=2")), ["0"]);
    assert!(found(&lenient, &hosts, &criteria("v=1 x=8 z=2")).is_empty(), "the first selector that is covered counts");
}

#[test]
fn variants_are_tried_in_turn_where_the_cluster_says_so() {
    let variants = vec![vec![entry("v=2"), entry("h=c64")], vec![entry("v=3")]];
    let asked = Criteria::new([entry("v=1"), entry("fallback_list=...")], Some(variants));
    let hosts = ["v=1", "v=3", "v=2 h=c64"];
    let settings = SubsetSettings { metadata_fallback_list: true, ..by(&["v", "h v"]) };
    assert_eq!(found(&settings, &hosts, &asked), ["2", "1"]);
    let none = Criteria::new([entry("v=1"), entry("fallback_list=...")], Some(Vec::new()));
    assert_eq!(found(&settings, &hosts, &none), ["0"]);
    assert!(found(&by(&["v"]), &hosts, &none).is_empty(), "elsewhere it is a key like others");
}

#[test]
fn a_subset_of_one_host_keeps_the_first_and_counts_the_others() {
    let mut settings = by(&["id"]);
    settings.selectors[0].single_host_per_subset = true;
    let hosts = ["id=1", "id=2", "id=1"];
    assert_eq!(found(&settings, &hosts, &criteria("id=1")), ["one 10.0.0.1:0"]);
    assert_eq!((divide(&settings, &hosts).len(), divide(&settings, &hosts).duplicates()), (2, 1));
}

#[test]
fn merging_puts_the_later_value_over_the_earlier() {
    let merged = criteria("a=1 b=1").merged(&criteria("b=2 c=3"));
    assert_eq!(merged, criteria("a=1 b=2 c=3"));
    assert_ne!(criteria("a=1"), criteria("a=2"));
}

#[test]
fn a_localitys_weight_may_shrink_with_its_part_of_the_subset() {
    let host = |i| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into())));
    let locality = |zone: &str, ports: std::ops::Range<u16>| LocalityHosts {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        weight: 50,
        hosts: ports.map(host).collect(),
    };
    let priorities = [Priority { localities: vec![locality("x", 0..10), locality("y", 10..14)] }];
    let all = [labels("v=1"), labels("v=2")];
    let members = || {
        let localities = priorities[0].localities.iter().enumerate();
        localities.flat_map(|(locality, l)| {
            let of = |i| if locality == 0 && i > 0 { &all[1] } else { &all[0] };
            let labelled = |(i, host)| Labelled { priority: 0, locality, host, labels: Some(of(i)) };
            l.hosts.iter().enumerate().map(labelled).collect::<Vec<_>>()
        })
    };
    let weights = |scale_locality_weight| {
        let settings = SubsetSettings { scale_locality_weight, ..by(&["v"]) };
        let subsets = Subsets::new(&settings, &priorities, members());
        let step = subsets.steps(&settings, &criteria("v=1"))[0];
        let Target::Subset(index) = step.target else { panic!("no subset") };
        let Some(Subset::Many(own)) = subsets.get(index) else { panic!("one host") };
        own[0].localities.iter().map(|l| (l.hosts.len(), l.weight)).collect::<Vec<_>>()
    };
    assert_eq!(weights(false), [(1, 50), (4, 50)]);
    assert_eq!(weights(true), [(1, 5), (4, 50)]);
}
