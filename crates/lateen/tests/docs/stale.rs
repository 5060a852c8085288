//! The checks themselves fail when they should: on output, commands, flags and links that are no longer so.
use std::fs;
use std::time::Duration;

use crate::page::Page;
use crate::{commands, expect, links, shell};

const STALE: &str = "
[there](there.md) [gone](gone.md) [no heading](there.md#nowhere) [heading](there.md#a-heading)
```sh
lateen up shop/ --detach
lateen get pods | lateen nosuchcommand
lateen demo show canary | lateen apply --nosuchflag -f -
```
```yaml file=a.yaml
kind: Pod
```
";

pub(crate) fn all_kinds_are_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    };
    write("there.md", "# A heading\n");
    let path = write("stale.md", STALE);
    let broken = links::broken(&path);
    assert!(broken.len() == 2 && broken[0].contains("gone.md") && broken[1].contains("nowhere"), "{broken:?}");
    let unknown = commands::unknown(&Page::read(&path));
    let told = ["nosuchcommand", "nosuchflag", "begin with `# a.yaml`"];
    assert!(unknown.len() == 3 && told.iter().zip(&unknown).all(|(part, line)| line.contains(part)), "{unknown:?}");

    assert!(expect::matches("a  …\n…\nlast\n", "a b c\nany\nlines\nlast  \n"));
    for printed in ["", "b\nlast\n", "a b\nlast\nmore\n"] {
        assert!(!expect::matches("a …\n…\nlast\n", printed), "{printed:?}");
    }
    let page = write("runs.md", "```sh test\necho one\n```\n```text\ntwo\n```\n");
    let failure = shell::run(&Page::read(&page), Duration::from_millis(100)).expect_err("the page says something else");
    assert!(failure.contains("one") && failure.contains("two"), "{failure}");
    let page = write("fails.md", "```sh test exit=3\nexit 3\n```\n");
    shell::run(&Page::read(&page), Duration::ZERO).expect("the code is the page's");
}
