//! Generates the messages from the `.proto` files of the `envoy-types` package and our own.
//!
//! Only what the roots reach is generated: the whole of Envoy's API is three times as large and
//! would be compiled by everyone. Nothing generated is committed.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// gRPC services that get client and server code; the others would only cost compile time.
const SERVICES: &[&str] = &["AggregatedDiscoveryService", "SecretDiscoveryService", "IstioCertificateService"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=roots.txt");
    let theirs = envoy_types_dir().join("proto");
    let includes: Vec<PathBuf> = ["proto"]
        .iter()
        .map(PathBuf::from)
        .chain(
            ["data-plane-api", "xds", "protoc-gen-validate", "googleapis", "opentelemetry-proto", "client_model", "cel-spec/proto"]
                .iter()
                .map(|d| theirs.join(d)),
        )
        .collect();
    let roots = fs::read_to_string("roots.txt").expect("roots.txt lists the root .proto files");
    let roots: Vec<&str> = roots.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();

    let mut resolver = protox::file::ChainFileResolver::new();
    resolver.add(Qualified(includes));
    resolver.add(protox::file::GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_source_info(false).include_imports(true);
    compiler.open_files(&roots).expect("root .proto files compile");
    let set = compiler.file_descriptor_set();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set()).expect("OUT_DIR is writable");

    let mut config = prost_build::Config::new();
    config
        .bytes(["."])
        .enable_type_names()
        .include_file("messages.rs")
        // Large variants would make every Route and HttpFilter as big as the largest one.
        .boxed(".envoy.config.route.v3.Route.action.route")
        .service_generator(Box::new(OnlySome(tonic_prost_build::configure().service_generator())));
    config.compile_fds(set).expect("code generation succeeds");
}

/// The folder of the `envoy-types` package, wherever cargo keeps it (registry cache or vendored).
fn envoy_types_dir() -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let manifest = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let run = |offline: bool| {
        let mut command = Command::new(&cargo);
        command.args(["metadata", "--format-version=1", "--manifest-path"]).arg(&manifest);
        if offline {
            command.arg("--offline");
        }
        let output = command.output().expect("cargo metadata runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        json["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"] == "envoy-types")
            .and_then(|p| p["manifest_path"].as_str())
            .and_then(|p| Path::new(p).parent().map(Path::to_path_buf))
            .filter(|p| p.join("proto").is_dir())
            .ok_or_else(|| "envoy-types is not in the package cache".to_owned())
    };
    run(true).or_else(|_| run(false)).expect("cargo metadata knows where envoy-types is")
}

/// Finds imports below the include folders and writes the relative names `common.x` out in full.
///
/// protoc looks a relative name up among what a file imports; protox among all files seen so far,
/// where `envoy.extensions.filters.common` hides `envoy.extensions.common`.
struct Qualified(Vec<PathBuf>);

impl protox::file::FileResolver for Qualified {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        let Some(path) = self.0.iter().map(|d| d.join(name)).find(|p| p.is_file()) else {
            return Err(protox::Error::file_not_found(name));
        };
        let mut source = fs::read_to_string(path).map_err(protox::Error::new)?;
        for package in ["ratelimit", "dynamic_forward_proxy", "matching", "tap", "async_files", "aws"] {
            source = source.replace(&format!(" common.{package}.v3."), &format!(" .envoy.extensions.common.{package}.v3."));
        }
        protox::file::File::from_source(name, &source)
    }
}

/// Hands only [`SERVICES`] on to tonic's generator.
struct OnlySome(Box<dyn prost_build::ServiceGenerator>);

impl prost_build::ServiceGenerator for OnlySome {
    fn generate(&mut self, service: prost_build::Service, buf: &mut String) {
        if SERVICES.contains(&service.proto_name.as_str()) {
            self.0.generate(service, buf);
        }
    }
    fn finalize(&mut self, buf: &mut String) {
        self.0.finalize(buf);
    }
    fn finalize_package(&mut self, package: &str, buf: &mut String) {
        self.0.finalize_package(package, buf);
    }
}
