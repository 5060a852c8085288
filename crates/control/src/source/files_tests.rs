//! What edits, mistakes and half-written files do to a watched folder.
use super::*;
use std::fs::write;

const WAIT: Duration = Duration::from_secs(5);

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: d}}\nspec: {{ports: [{{port: 80, name: http}}]}}\n")
}

fn folder() -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new([folder.path().to_owned()], "default", Limits::default());
    (folder, files)
}

fn names(state: &State) -> Vec<String> {
    state.resources.iter().map(|r| r.meta().name.clone()).collect()
}

fn load(files: &mut Files) -> State {
    files.load().unwrap()
}

#[test]
fn folders_below_are_read_and_other_files_are_not() {
    let (folder, mut files) = folder();
    fs::create_dir_all(folder.path().join("below/deeper")).unwrap();
    write(folder.path().join("below/deeper/a.yml"), service("a")).unwrap();
    write(folder.path().join("b.yaml"), service("b")).unwrap();
    write(folder.path().join("notes.txt"), "kind: [").unwrap();
    write(folder.path().join(".hidden.yaml"), "kind: [").unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a", "b"]);
    assert!(state.diagnostics.is_empty(), "{:?}", state.diagnostics);
}

#[test]
fn a_broken_file_keeps_what_it_held_and_says_where_it_is_broken() {
    let (folder, mut files) = folder();
    let path = folder.path().join("a.yaml");
    write(&path, format!("{}---\n{}", service("a"), service("b"))).unwrap();
    assert_eq!(names(&load(&mut files)), ["a", "b"]);
    write(&path, format!("{}---\nkind: [broken", service("a"))).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a", "b"]);
    let error = state.diagnostics.iter().find(|d| d.is_error()).expect("an error");
    assert!(error.file.ends_with("a.yaml") && error.line > 0, "{error}");
    let kept = state.diagnostics.iter().find(|d| d.message.contains("still in force")).expect("a warning");
    assert!(kept.message.contains("Service d/b") && !kept.message.contains("d/a"), "{kept}");

    write(&path, service("a")).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a"], "in order again, the file means what it says");
    assert!(state.diagnostics.is_empty());
}

#[test]
fn errors_twice_in_a_row_still_keep_the_good_ones() {
    let (folder, mut files) = folder();
    let path = folder.path().join("a.yaml");
    write(&path, service("a")).unwrap();
    load(&mut files);
    for broken in ["kind: [", "\t- x: {"] {
        write(&path, broken).unwrap();
        assert_eq!(names(&load(&mut files)), ["a"]);
    }
}

#[test]
fn what_moved_to_another_file_is_not_a_duplicate_of_what_was_kept() {
    let (folder, mut files) = folder();
    write(folder.path().join("a.yaml"), service("a")).unwrap();
    load(&mut files);
    write(folder.path().join("a.yaml"), "kind: [").unwrap();
    write(folder.path().join("b.yaml"), service("a")).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a"]);
    assert!(!state.diagnostics.iter().any(|d| d.message.contains("defined already")), "{:?}", state.diagnostics);
    assert!(state.resources.iter().all(|r| r.origin().file.ends_with("b.yaml")));
}

#[test]
fn a_file_that_becomes_empty_is_believed_only_after_a_while() {
    let (folder, mut files) = folder();
    let path = folder.path().join("a.yaml");
    write(&path, service("a")).unwrap();
    load(&mut files);
    write(&path, "").unwrap();
    assert_eq!(names(&load(&mut files)), ["a"]);
    assert!(files.again_at.is_some());
    std::thread::sleep(EMPTY_GRACE);
    assert!(names(&load(&mut files)).is_empty());
}

#[test]
fn deleting_a_file_deletes_what_it_held_also_when_it_was_broken() {
    let (folder, mut files) = folder();
    let path = folder.path().join("a.yaml");
    write(&path, service("a")).unwrap();
    load(&mut files);
    write(&path, "kind: [").unwrap();
    load(&mut files);
    fs::remove_file(&path).unwrap();
    let state = load(&mut files);
    assert!(state.resources.is_empty() && state.diagnostics.is_empty());
}

#[test]
fn a_folder_that_goes_away_takes_nothing_along() {
    let (folder, mut files) = folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    write(inner.join("a.yaml"), service("a")).unwrap();
    let mut files_inner = Files::new([inner.clone()], "default", Limits::default());
    assert_eq!(names(&load(&mut files_inner)), ["a"]);
    fs::rename(&inner, folder.path().join("elsewhere")).unwrap();
    let state = load(&mut files_inner);
    assert_eq!(names(&state), ["a"]);
    assert!(state.diagnostics[0].message.contains("cannot be read"));
    assert_eq!(names(&load(&mut files)), ["a"], "seen from above it has only moved");
}

#[test]
fn duplicates_within_and_across_files_leave_the_first() {
    let (folder, mut files) = folder();
    write(folder.path().join("a.yaml"), format!("{}---\n{}", service("x"), service("x"))).unwrap();
    write(folder.path().join("b.yaml"), service("x")).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["x"]);
    assert!(state.resources.iter().all(|r| r.origin().file.ends_with("a.yaml") && r.origin().line() == 1));
    let reported: Vec<&Diagnostic> = state.diagnostics.iter().filter(|d| d.message.contains("defined already")).collect();
    assert_eq!(reported.len(), 2, "{:?}", state.diagnostics);
}

#[test]
fn a_file_too_large_is_refused_and_disturbs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new([folder.path().to_owned()], "default", Limits { max_file_bytes: 1000, ..Limits::default() });
    write(folder.path().join("a.yaml"), service("a")).unwrap();
    write(folder.path().join("large.yaml"), "#".repeat(2000)).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a"]);
    assert!(state.diagnostics[0].message.contains("at most 1000"), "{}", state.diagnostics[0]);
}

#[tokio::test]
async fn a_change_is_noticed_by_report_and_by_looking() {
    for watched in [true, false] {
        let (folder, mut files) = folder();
        load(&mut files);
        if !watched {
            files.watcher = None;
        }
        // Drain reports of the folder's own making.
        while tokio::time::timeout(Duration::from_millis(100), files.changed()).await.is_ok() {}
        let atomic = folder.path().join(".a.yaml.tmp");
        write(&atomic, service("a")).unwrap();
        fs::rename(&atomic, folder.path().join("a.yaml")).unwrap();
        tokio::time::timeout(WAIT, files.changed()).await.expect("noticed");
        assert_eq!(names(&load(&mut files)), ["a"]);
    }
}

fn publish(writer: &mut generation::Writer, names: &[&str]) {
    let files = names.iter().map(|name| (format!("{name}.yaml"), service(name))).collect();
    writer.publish(files).unwrap();
}

#[tokio::test]
async fn a_folder_of_generations_is_read_by_its_link_and_under_its_own_name() {
    let (folder, mut files) = folder();
    let mut writer = generation::Writer::new(folder.path());
    publish(&mut writer, &["a", "b"]);
    // As kubelet leaves it for programs that know nothing of generations.
    std::os::unix::fs::symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    let state = load(&mut files);
    assert_eq!(names(&state), ["a", "b"]);
    let first = state.resources.iter().next().unwrap();
    assert_eq!(&*first.origin().file, folder.path().join("a.yaml").to_str().unwrap());
    publish(&mut writer, &["b", "c"]);
    tokio::time::timeout(WAIT, files.changed()).await.expect("the new link is noticed");
    assert_eq!(names(&load(&mut files)), ["b", "c"]);
}

/// However the two threads meet, never a `rule-1` without the `ruled-1` that it stands for.
#[test]
fn a_change_of_several_files_is_seen_whole_or_not_at_all() {
    let (folder, mut files) = folder();
    let mut writer = generation::Writer::new(folder.path());
    publish(&mut writer, &["rule-0", "ruled-0"]);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for round in 1..200 {
                publish(&mut writer, &[&format!("rule-{round}"), &format!("ruled-{round}")]);
            }
        });
        while !writing.is_finished() {
            let Some(seen) = files.load() else { continue };
            let [one, other] = names(&seen).try_into().unwrap_or_else(|seen| panic!("{seen:?}"));
            assert_eq!(one.strip_prefix("rule"), other.strip_prefix("ruled"));
        }
    });
    assert_eq!(names(&load(&mut files)), ["rule-199", "ruled-199"]);
}

#[test]
fn a_folder_that_was_replaced_is_looked_at_again() {
    let (folder, files) = folder();
    let mut writer = generation::Writer::new(folder.path());
    publish(&mut writer, &["a"]);
    let listing = files.list();
    assert!(!listing.has_moved() && !listing.is_gone());
    publish(&mut writer, &["b"]);
    assert!(listing.has_moved() && !listing.is_gone(), "the one before is kept for a while");
    publish(&mut writer, &["c"]);
    assert!(listing.is_gone());
}

#[tokio::test]
async fn a_load_that_is_due_is_told_once() {
    let (_folder, mut files) = folder();
    files.again_at = Some(Instant::now());
    tokio::time::timeout(WAIT, files.changed()).await.expect("it is due");
    // A keeper waits for calm before it loads: being told for ever, it would wait as long as it may.
    assert!(tokio::time::timeout(Duration::from_millis(300), files.changed()).await.is_err());
}

#[test]
fn what_is_being_prepared_is_of_no_matter_yet() {
    assert!(is_preparation(Path::new("/etc/lateen/..17/a.yaml")));
    assert!(!is_preparation(Path::new("/etc/lateen/..data")));
    assert!(!is_preparation(Path::new("/home/me/.mesh/a.yaml")));
}
