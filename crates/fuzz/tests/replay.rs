//! The corpora, and a few thousand mutations of each, with a fixed seed: what was found once stays mended.
use lateen_fuzz::{Mutator, TARGETS, Target};

fn replay(name: &str, mutations: usize) {
    let target = Target::named(name).unwrap();
    let corpus = target.corpus();
    assert!(corpus.len() > 1, "{name} has hardly anything to begin with");
    corpus.iter().for_each(|input| (target.run)(input));
    let mut mutator = Mutator::new(20_260_101);
    for _ in 0..mutations {
        (target.run)(&mutator.next(&corpus));
    }
}

#[test]
fn http1_requests_are_survived() {
    replay("http1_requests", 5000);
}

#[test]
fn http1_responses_are_survived() {
    replay("http1_responses", 5000);
}

#[test]
fn http2_frames_are_survived() {
    replay("http2", 5000);
}

#[test]
fn first_bytes_are_survived() {
    replay("first_bytes", 5000);
}

#[test]
fn resources_are_survived() {
    replay("resources", 3000);
}

#[test]
fn bootstraps_are_survived() {
    replay("bootstrap", 2000);
}

#[test]
fn the_seeds_are_understood() {
    // A seed that is refused at once would test the refusal alone.
    assert!(TARGETS.iter().all(|t| !(t.seeds)().is_empty()));
    assert!((Target::named("resources").unwrap().seeds)().len() >= 2);
}
