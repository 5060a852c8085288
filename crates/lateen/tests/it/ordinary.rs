//! A mesh of a user without privileges: the same namespaces, capture, names and mutual TLS.
use anyhow::ensure;

use crate::mesh::{DataPlane, Mesh, Options, User, settles};
use crate::world::{self, PREFERENCE, RECOMMENDATION, peer_authentication, routes, to};

pub(crate) fn a_mesh_without_privileges() {
    let mesh = match Mesh::up("ordinary", &world::sample(), Options { data_plane: DataPlane::Lateen, user: User::Ordinary }) {
        Ok(mesh) => mesh,
        // The one line that says what to enable: then this machine does not have it.
        Err(why) if why.0.contains("unprivileged") && why.0.contains("error:") && !why.0.contains("istio-proxy") => {
            return eprintln!("skipped: this machine does not let ordinary users make namespaces:\n{}", why.0);
        }
        Err(why) => panic!("{}", why.0),
    };
    mesh.apply(&routes(&format!("{{{}}}", to("v2"))));
    settles("rules hold along the chain", || {
        let report = mesh.from("customer").load(PREFERENCE, 50)?;
        report.ensure_clean()?.share("recommendation", "v2").ensure_all()
    });
    mesh.apply(&peer_authentication("STRICT"));
    settles("the stranger is refused, the mesh's own are served", || {
        ensure!(mesh.from("stranger").get(RECOMMENDATION).status == 0, "the stranger is served");
        mesh.from("customer").get(RECOMMENDATION).ensure_status(200).map(drop)
    });
    mesh.down();
}
