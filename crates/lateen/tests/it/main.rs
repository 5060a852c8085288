//! End to end: meshes of real processes in network namespaces, driven by the command line as its users drive it.
//!
//! The exercises are functions over a running mesh. They run one after the other, first with our own proxy as every
//! sidecar, then with the real Envoy; each mesh is started once, and its end is a test too: nothing may be left.
/// Done when it holds; otherwise the reason, for [`mesh::settles`] to try again.
macro_rules! check {
    ($($condition:tt)*) => {{
        anyhow::ensure!($($condition)*);
        Ok(())
    }};
}

mod admin;
mod bad_input;
mod corpus;
mod exercises;
mod leftovers;
mod mesh;
mod ordinary;
mod probe;
mod process;
mod proxyless;
mod report;
mod rotation;
mod safety;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use libtest_mimic::{Arguments, Trial};

use crate::exercises::Exercise;
use crate::mesh::{DataPlane, Mesh, NotUp, Options, User};

/// The mesh that runs now; the tests run one at a time.
static RUNNING: Mutex<Option<(DataPlane, Result<Mesh, NotUp>)>> = Mutex::new(None);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("__probe", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return probe::run(rest);
    }
    let mut arguments = Arguments::from_args();
    // Two processors are few for one mesh; two at a time would measure each other.
    arguments.test_threads = Some(1);
    let outcome = libtest_mimic::run(&arguments, trials());
    // After a filtered run the mesh may still be there.
    drop(running().take());
    outcome.exit_code()
}

fn running() -> std::sync::MutexGuard<'static, Option<(DataPlane, Result<Mesh, NotUp>)>> {
    RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn trials() -> Vec<Trial> {
    let own = [exercises::all(), [admin::ALL, bad_input::ALL, corpus::ALL, proxyless::ALL, rotation::ALL, safety::ALL].concat()].concat();
    let mut trials: Vec<Trial> = own.into_iter().map(|e| trial(DataPlane::Lateen, e)).collect();
    trials.push(end(DataPlane::Lateen));
    trials.push(Trial::test("ordinary_user::a_mesh_without_privileges", || {
        ordinary::a_mesh_without_privileges();
        Ok(())
    }));
    if std::env::var_os("LATEEN_TEST_ENVOY").is_some() {
        let foreign = [exercises::all(), [admin::ALL, rotation::ALL, safety::ALL].concat()].concat();
        trials.extend(foreign.into_iter().map(|e| trial(DataPlane::Envoy, e)));
        trials.push(end(DataPlane::Envoy));
    } else {
        trials.push(Trial::test("envoy::skipped", || {
            eprintln!(
                "skipped: LATEEN_TEST_ENVOY is not set (`cargo xtask test` sets it), so the exercises do not run with Envoy as sidecar"
            );
            Ok(())
        }));
    }
    trials
}

fn prefix(data_plane: DataPlane) -> &'static str {
    match data_plane {
        DataPlane::Lateen => "lateen",
        DataPlane::Envoy => "envoy",
    }
}

/// An exercise on the mesh with that data plane, which is started if it does not run.
fn trial(data_plane: DataPlane, exercise: Exercise) -> Trial {
    Trial::test(format!("{}::{}", prefix(data_plane), exercise.name), move || {
        let mut running = running();
        if running.as_ref().is_none_or(|(of, _)| *of != data_plane) {
            // The other mesh ends first.
            *running = None;
            let mesh = Mesh::up(prefix(data_plane), &world::sample(), Options { data_plane, user: User::Own });
            *running = Some((data_plane, mesh));
        }
        match running.as_mut() {
            Some((_, Ok(mesh))) => {
                mesh.reset();
                let outcome = catch_unwind(AssertUnwindSafe(|| (exercise.run)(mesh)));
                outcome.map_err(|panic| format!("{}\n{}", words_of(panic.as_ref()), mesh.state_for_people()).into())
            }
            Some((_, Err(why))) => {
                // Told once in full; the other exercises need not repeat it.
                let told = std::mem::replace(&mut why.0, "the mesh did not come up, see the first failure".into());
                Err(told.into())
            }
            None => Err("no mesh".into()),
        }
    })
}

/// What a panic says.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// The end of the mesh: it leaves nothing.
fn end(data_plane: DataPlane) -> Trial {
    Trial::test(format!("{}::end::nothing_is_left", prefix(data_plane)), move || match running().take() {
        Some((of, Ok(mesh))) if of == data_plane => {
            mesh.reset();
            mesh.down();
            Ok(())
        }
        Some((_, Err(why))) => Err(why.0.into()),
        _ => Err("no mesh was running: run this together with others".into()),
    })
}
