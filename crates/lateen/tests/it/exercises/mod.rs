//! What callers of a mesh see, as functions over a mesh: every data plane must pass them.
mod breaking;
mod egress;
mod faults;
mod files;
mod gateway;
mod identity;
mod mirror;
mod protocols;
mod requests;
mod resilience;
mod routing;

use crate::mesh::Mesh;

/// One thing to try on a running mesh, which is reset before it.
#[derive(Clone, Copy)]
pub(crate) struct Exercise {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Mesh),
}

/// Names the functions of a module as exercises.
macro_rules! exercises {
    ($module:literal: $($function:ident),+ $(,)?) => {
        pub(crate) const ALL: &[$crate::exercises::Exercise] =
            &[$($crate::exercises::Exercise { name: concat!($module, "::", stringify!($function)), run: $function }),+];
    };
}
pub(crate) use exercises;

/// Those of all modules.
pub(crate) fn all() -> Vec<Exercise> {
    let lists = [
        routing::ALL,
        requests::ALL,
        gateway::ALL,
        faults::ALL,
        mirror::ALL,
        resilience::ALL,
        breaking::ALL,
        protocols::ALL,
        egress::ALL,
        files::ALL,
        identity::ALL,
    ];
    lists.concat()
}
