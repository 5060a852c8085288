//! Which known name somebody probably meant.

/// The candidate nearest to `written`, if one is near enough to be worth saying: one slip in a short name, one in
/// three letters of a longer one, and any difference of case, separators or number (`retry`, `retries`).
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (written.chars().count() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (if fold(written) == fold(candidate) { 0 } else { distance(written, candidate) }, candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(name: &str) -> String {
    let name: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    match name.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => name.strip_suffix('s').unwrap_or(&name).to_owned(),
    }
}

/// Insertions, deletions, substitutions and swaps of neighbours from one text to the other.
pub fn distance(a: &str, b: &str) -> usize {
    // Names are short; a long one is no typing error, and must not cost quadratic time.
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let fields = ["route", "redirect", "match", "timeout", "tls"];
        assert_eq!(nearest("rout", fields), Some("route"));
        assert_eq!(nearest("mathc", fields), Some("match"));
        assert_eq!(nearest("Time_Out", fields), Some("timeout"));
        assert_eq!(nearest("retry", ["retries", "rewrite"]), Some("retries"));
        assert_eq!(nearest("tcp", fields), None);
        assert_eq!(nearest("websocketUpgrade", fields), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance(&"x".repeat(100), "x"), usize::MAX);
    }
}
