use proptest::prelude::*;

use super::*;

const BASE: PathNormalization = PathNormalization { normalize: true, escaped_slashes: EscapedSlashes::Keep };

fn with(escaped_slashes: EscapedSlashes) -> PathNormalization {
    PathNormalization { escaped_slashes, ..BASE }
}

fn path(input: &str, settings: &PathNormalization, merge: bool) -> String {
    match normalize(input, settings, merge) {
        Normalized::Path(path) => path.into_owned(),
        Normalized::Redirect(to) => format!("redirect {to}"),
        Normalized::Reject(_) => "reject".to_owned(),
    }
}

#[test]
fn base_normalisation() {
    for (input, expected) in [
        ("/admin", "/admin"),
        ("/./admin", "/admin"),
        ("/x/../admin", "/admin"),
        ("/../../admin", "/admin"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/..", "/"),
        ("//admin", "//admin"),
        ("\\admin", "\\admin"),
        ("/\\admin", "//admin"),
        ("/a\\..\\admin", "/admin"),
        ("/%2e%2e/admin", "/admin"),
        ("/%2E/admin", "/admin"),
        // Decoded once only.
        ("/%252e%252e/admin", "/%252e%252e/admin"),
        ("/%c0%ae/admin", "/%c0%ae/admin"),
        ("/0x2e0x2e/admin", "/0x2e0x2e/admin"),
        ("/app%2f..%2fadmin", "/app%2f..%2fadmin"),
        ("/%5cadmin", "/%5cadmin"),
        ("/%61dmin", "/admin"),
        ("/a%00b", "reject"),
        ("/a%zz", "/a%zz"),
        ("/a%", "/a%"),
        // A `%` that begins no escape begins none afterwards either.
        ("/x/%%32e%%32e/admin", "/x/%252e%252e/admin"),
        ("/x/%2%65%2%65/admin", "/x/%252e%252e/admin"),
        ("/x%%32Fadmin", "/x%252Fadmin"),
        ("/x%2%46admin", "/x%252Fadmin"),
        ("/a%%30%30", "/a%2500"),
        ("/a%%%34%31%", "/a%%2541%"),
        ("/a%%7Ab", "/a%zb"),
        ("/admin?x=/../y", "/admin?x=/../y"),
        ("/admin#x", "/admin"),
        ("/admin?q#x", "/admin?q"),
        ("/admin;a=b", "/admin;a=b"),
        ("/a b", "/a%20b"),
        ("*", "*"),
    ] {
        assert_eq!(path(input, &BASE, false), expected, "{input}");
    }
}

#[test]
fn without_normalisation_only_the_fragment_goes() {
    let none = PathNormalization { normalize: false, escaped_slashes: EscapedSlashes::Keep };
    assert_eq!(path("/x/../admin#a", &none, false), "/x/../admin");
    assert_eq!(path("/a%00b", &none, false), "/a%00b");
    assert_eq!(path("//a///b?c//d", &none, true), "/a/b?c//d");
}

#[test]
fn escaped_slashes_as_configured() {
    for (settings, expected) in [
        (EscapedSlashes::Keep, "/app%2F..%5Cadmin?q"),
        (EscapedSlashes::Reject, "reject"),
        (EscapedSlashes::UnescapeAndForward, "/admin?q"),
        (EscapedSlashes::UnescapeAndRedirect, "redirect /admin?q"),
    ] {
        assert_eq!(path("/app%2F..%5Cadmin?q", &with(settings), false), expected);
    }
    assert_eq!(path("/a?x=%2F", &with(EscapedSlashes::Reject), false), "/a?x=%2F");
    assert_eq!(path("/a%2F%2Fb", &with(EscapedSlashes::UnescapeAndForward), true), "/a/b");
}

proptest! {
    #[test]
    fn nothing_climbs_out_and_a_second_pass_changes_nothing(input in "/([a./\\\\]|%2e|%2F|%5c|%25|%41){0,12}", merge: bool) {
        let once = path(&input, &with(EscapedSlashes::UnescapeAndForward), merge);
        prop_assert!(once.starts_with('/'));
        prop_assert!(!once.contains('\\'));
        prop_assert!(!once.split('/').any(|s| s == "." || s == ".."), "{} -> {}", input, once);
        prop_assert!(!merge || !once.contains("//"));
        // `%25` stays as it is, so what it might spell is never decoded.
        prop_assert_eq!(path(&once, &with(EscapedSlashes::UnescapeAndForward), merge), once);
    }

    #[test]
    fn what_is_in_its_normal_form_stays_so(input in "/([%./\\\\25eEfFcC0z]|%2e|%2F|%25|%32|%35|%43|%46|%65){0,12}", merge: bool) {
        use EscapedSlashes as E;
        for settings in [E::Keep, E::UnescapeAndForward].map(with) {
            let Normalized::Path(once) = normalize(&input, &settings, merge) else { continue };
            // Not even one that asks for more finds anything to decode.
            for again in [settings, with(E::UnescapeAndForward)] {
                if again == settings || !has_escaped_slash(&input) {
                    prop_assert_eq!(normalize(&once, &again, merge), Normalized::Path(once.as_ref().into()), "{}", input);
                }
            }
            let refused = matches!(normalize(&once, &with(E::Reject), merge), Normalized::Reject(_));
            prop_assert!(!refused || has_escaped_slash(&input), "{} -> {}", input, once);
        }
    }

    #[test]
    fn any_text_is_taken_without_panic(input in "\\PC{0,40}", merge: bool) {
        for slashes in [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::UnescapeAndForward, EscapedSlashes::UnescapeAndRedirect] {
            let _ = normalize(&input, &with(slashes), merge);
        }
    }
}

proptest! {
    #[test]
    fn what_is_told_to_need_nothing_at_the_first_look_needs_nothing(text in "/?[/a.?#%2fF5cC\\\\ é;\u{7f}]{0,8}") {
        use EscapedSlashes as E;
        if is_plain(text.as_bytes()) {
            for escaped in [E::Keep, E::Reject, E::UnescapeAndRedirect, E::UnescapeAndForward] {
                for merge in [false, true] {
                    prop_assert_eq!(by_parts(&text, &with(escaped), merge), Normalized::Path(text.as_str().into()));
                }
            }
        }
    }
}

#[test]
fn most_paths_are_told_at_the_first_look() {
    for path in ["/", "/api/v1/products/0/reviews?page=2&sort=asc", "/a/b.html;v=1", "/~user/x_y-z/?q=%2F/../", "*"] {
        assert!(is_plain(path.as_bytes()), "{path}");
    }
}
