//! The control socket: one JSON line asks, JSON lines answer, on an abstract Unix socket that only its user may use.
pub mod server;
pub mod table;

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::config::SourceText;

/// A request longer than this is refused.
pub const LONGEST_REQUEST: usize = 64 << 20;

/// The socket's address: in the host's network namespace, gone with the process that holds it.
///
/// # Errors
/// When the name is too long for a socket address.
pub fn address(uid: u32, mesh: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("lateen/{uid}/{mesh}"))
}

/// How `get` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    #[default]
    Table,
    Wide,
    Yaml,
    Json,
    Name,
}

/// Which namespace; all when `None`.
pub type Namespace = Option<String>;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Create or change what the texts hold.
    Apply {
        sources: Vec<SourceText>,
        namespace: String,
    },
    /// Remove what the texts hold.
    DeleteSources {
        sources: Vec<SourceText>,
        namespace: String,
    },
    /// Remove by kind and name.
    Delete {
        kind: String,
        names: Vec<String>,
        namespace: String,
    },
    Get {
        kinds: String,
        names: Vec<String>,
        namespace: Namespace,
        output: Output,
        watch: bool,
    },
    Logs {
        pod: String,
        namespace: String,
        container: Option<String>,
        follow: bool,
        tail: Option<usize>,
        previous: bool,
    },
    /// Run a command in a pod; input, output and errors come as three descriptors with the request.
    Exec {
        pod: String,
        namespace: String,
        container: Option<String>,
        command: Vec<String>,
        term: Option<String>,
    },
    Ps,
    /// Wait until everything is ready.
    Wait {
        timeout_seconds: u64,
    },
    /// What `up` prints: the mesh's state in short, for programs.
    Status,
    Down,
}

/// What a client may send while its request runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Further {
    /// Pass this signal on to the command.
    Signal(i32),
}

/// What comes back, in any number, `Exit` last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// For standard output, with its line end.
    Out(String),
    /// Bytes for standard output that are not UTF-8 throughout, in base64.
    Raw(String),
    /// For standard error, with its line end.
    Err(String),
    /// What is waited for now, one line each; replaces what was told before. For people who watch.
    Waiting(Vec<String>),
    Exit(i32),
}
