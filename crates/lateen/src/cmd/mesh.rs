//! What the subcommands that talk to a running mesh have in common.
use std::process::ExitCode;

use lateen_runner::api::Request;
use lateen_runner::client::Client;

/// Which running mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct MeshArgs {
    /// Name of the mesh, as given to `up`
    #[arg(long = "name", id = "mesh_name", default_value = "default", value_name = "NAME", env = "LATEEN_MESH")]
    pub(crate) mesh: String,
}

/// Which namespace, as kubectl takes it.
#[derive(Debug, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// Namespace
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
}

impl MeshArgs {
    /// Asks the mesh, prints what it says, returns its exit code.
    pub(crate) fn run(&self, request: &Request) -> anyhow::Result<ExitCode> {
        Ok(exit(Client::connect(&self.mesh)?.run(request)?))
    }
}

/// An exit code as the shell sees it.
pub(crate) fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
