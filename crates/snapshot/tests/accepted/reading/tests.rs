use prost_reflect::DescriptorPool;

use super::*;

fn read_text(text: &str) -> Read {
    let pool = DescriptorPool::decode(lateen_proto::DESCRIPTORS).unwrap();
    let mut result = Read::default();
    read(text, &Names::new(&pool), &mut result);
    result
}

/// As letters: honoured, harmless, refused.
fn letters(fates: &BTreeMap<String, Fate>) -> Vec<String> {
    let letter = |is: bool, letter: char| is.then_some(letter);
    let letters =
        |f: &Fate| [letter(f.honoured, 'h'), letter(f.harmless, 'n'), letter(f.refused, 'r')].into_iter().flatten().collect::<String>();
    fates.iter().map(|(name, fate)| format!("{name} {}", letters(fate))).collect()
}

const CORE: &str = "use lateen_proto::envoy::config::core::v3 as core;";

#[test]
fn fields_are_seen_however_a_message_is_taken_apart() {
    for text in [
        "fn f(v: X) { let core::CidrRange { address_prefix, prefix_len } = v; refuse!(prefix_len); }",
        "fn f(v: X) { if let Some(core::CidrRange { address_prefix, prefix_len }) = v { refuse!(prefix_len); } }",
        "fn f(v: X) { let Some(core::CidrRange { address_prefix, prefix_len }) = v else { return }; refuse!(prefix_len); }",
        "fn f(v: X) { match v { core::CidrRange { address_prefix, prefix_len } => { refuse!(prefix_len); } } }",
        "fn f(v: X) { v.map(|core::CidrRange { address_prefix, prefix_len }| { refuse!(prefix_len); }); }",
        "fn f(core::CidrRange { address_prefix, prefix_len }: X) { if prefix_len.is_some() { return Err(no()); } }",
        "fn f(v: X) { use core::CidrRange as Block; let Block { address_prefix: a, prefix_len: b } = v; let b = b.filter(x); refuse!(b); }",
    ] {
        let read = read_text(&format!("{CORE} {text}"));
        assert_eq!(letters(&read.messages["envoy.config.core.v3.CidrRange"]), ["address_prefix h", "prefix_len r"], "{text}");
    }
}

#[test]
fn a_mark_is_of_the_innermost_field_of_its_name() {
    let text = "fn f(v: X, w: X) {
        let core::CidrRange { address_prefix, prefix_len } = v;
        w.map(|core::HttpUri { uri, timeout: prefix_len, http_upstream_type }| { harmless!(prefix_len); });
        refuse!(address_prefix);
    }";
    let read = read_text(&format!("{CORE} {text}"));
    assert_eq!(letters(&read.messages["envoy.config.core.v3.CidrRange"]), ["address_prefix r", "prefix_len h"]);
    assert_eq!(letters(&read.messages["envoy.config.core.v3.HttpUri"]), ["http_upstream_type h", "timeout n", "uri h"]);
}

#[test]
fn fields_of_variables_with_a_type_are_seen() {
    let text = "fn f(value: core::CidrRange) { value.address_prefix; other.prefix_len; let value = 1; value.prefix_len; }";
    let read = read_text(&format!("{CORE} {text}"));
    assert_eq!(letters(&read.messages["envoy.config.core.v3.CidrRange"]), ["address_prefix h"]);
}

#[test]
fn a_member_of_a_oneof_is_refused_where_its_arm_is_or_that_for_the_rest() {
    let of = |text: &str| {
        let source = format!("{CORE} use core::data_source::Specifier as S; fn f(v: X) {{ {text} }}");
        letters(&read_text(&source).members["envoy.config.core.v3.DataSource.specifier"])
    };
    let arms = "match v { Some(S::Filename(f)) => f, Some(S::InlineBytes(_)) => return Err(no()), None => 1 }";
    assert_eq!(of(arms), ["filename h", "inline_bytes r"]);
    let rest = ["environment_variable r", "filename h", "inline_bytes r", "inline_string r"];
    assert_eq!(of("match v { Some(S::Filename(f)) => f, _ => Err(no()).within(x) }"), rest);
    assert_eq!(of("let Some(S::Filename(f)) = v else { return Err(no()) };"), rest);
    // Some of its values only.
    assert_eq!(of("match v { Some(S::Filename(f)) if f.is_empty() => Err(no()), Some(S::Filename(f)) => f }"), ["filename h"]);
    assert_eq!(of("match v { Some(S::Filename(f)) if good(f) => f, Some(S::Filename(_)) => Err(no()) }"), ["filename h"]);
    assert_eq!(of("match v { Some(S::Filename(f)) => { harmless!(f); 1 } }"), ["filename n"]);
}

#[test]
fn what_is_opened_is_seen_by_its_type_or_name() {
    for text in [
        "fn f() { if any::is::<core::CidrRange>(c) {} }",
        "fn f() { typed.is_none_or(any::is::<core::CidrRange>); }",
        "fn f() { open::<core::CidrRange>(c); }",
        "fn f() { core::CidrRange::decode(c); }",
        "const NAME: &str = \"envoy.config.core.v3.CidrRange\";",
        "fn f() { if name == \"type.googleapis.com/envoy.config.core.v3.CidrRange\" {} }",
    ] {
        let read = read_text(&format!("{CORE} {text}"));
        assert_eq!(read.opened.into_iter().collect::<Vec<_>>(), ["envoy.config.core.v3.CidrRange"], "{text}");
    }
    assert!(read_text("fn f() { name == \"envoy.extensions.nobody.v3.Knows\" }").opened.contains("envoy.extensions.nobody.v3.Knows"));
}
