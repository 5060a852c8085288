//! Whatever the bytes, reading ends without a panic and within its limits.
use lateen_model::{Limits, parse};
use proptest::prelude::*;

/// Pieces that YAML is made of, to get past the first token more often than chance would.
fn yamlish() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "apiVersion: networking.istio.io/v1\n",
        "kind: VirtualService\n",
        "kind: List\nitems:\n",
        "metadata: {name: a}\n",
        "spec:\n",
        "  http:\n",
        "  - route:\n",
        "    - destination: {host: a}\n",
        "  hosts: [a, '*']\n",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "<<: *a\n",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "\\u00e9",
        "# c\n",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "!!str ",
        "!x ",
        "\t",
        "\r\n",
        "\n",
        "  ",
        "~",
        "null",
        "0x",
        "1e999",
        ".inf",
        "yes",
        "?",
        "? ",
        "é",
        "\u{feff}",
        "timeout: 5s\n",
        "weight: -1\n",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        parse("f.yaml", &bytes, &Limits::default());
    }

    #[test]
    fn anything_like_yaml_is_read_without_panic(text in yamlish()) {
        parse("f.yaml", text.as_bytes(), &Limits::default());
    }

    #[test]
    fn a_file_with_one_wrong_byte_is_read_without_panic(position in 0usize..700, byte in any::<u8>()) {
        let mut bytes = include_bytes!("../bad/good-neighbour.yaml").to_vec();
        let position = position % bytes.len();
        bytes[position] = byte;
        parse("f.yaml", &bytes, &Limits::default());
    }
}

#[test]
fn hostile_files_end_soon() {
    let size = 1 << 19;
    let fill = |piece: &str| piece.repeat(size / piece.len());
    let header = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n";
    let texts = [
        fill("["),
        fill("{"),
        fill("- "),
        fill("? "),
        fill("[,"),
        fill("a: "),
        fill("a: b\n"),
        fill("&a "),
        fill("'"),
        fill("\"\\n"),
        fill("---\n"),
        fill("---\na\n"),
        fill("# \n"),
        fill(" "),
        fill("!a!"),
        fill("%a\n"),
        fill("a\n "),
        format!("a: {}", fill("b ")),
        format!("[{}]", fill("a: b, ")),
        format!("{{{}}}", fill("a, ")),
        format!("{header}  http:\n{}", fill("  - x: 1\n")),
        format!("{header}  hosts:\n{}", fill("  - a\n")),
        format!("{header}{}", (0..60_000).map(|i| format!("  k{i}: 1\n")).collect::<String>()),
        format!("{header}  http:\n{}", (0..9_000).map(|i| format!("  - match: [{{uri: {{prefix: /{i}}}}}]\n")).collect::<String>()),
        format!("{header}  hosts: [{}]\n", (0..9_999).map(|i| format!("h{i},")).collect::<String>()),
    ];
    for text in texts {
        let start = std::time::Instant::now();
        let parsed = parse("f.yaml", text.as_bytes(), &Limits::default());
        let took = start.elapsed();
        let said = parsed.diagnostics.len();
        println!("{took:>10.2?} {said:>7} messages {:?}", text.chars().skip(80).take(24).collect::<String>());
        assert!(took < std::time::Duration::from_secs(20), "{:?} took {took:?}", &text[..24]);
    }
}
