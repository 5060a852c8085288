//! The program: control plane, proxy, certificate authority, runner and command line of the mesh.
fn main() {}
