//! What the pods run: a server that tells its name, and a few clients.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

pub(crate) fn run(words: &[String]) {
    let word = |i: usize| words.get(i).map_or("", String::as_str);
    match word(0) {
        "serve" => serve(word(1)),
        "call" => call(word(1), word(2).parse().expect("a number of calls")),
        "env" => println!("{}", std::env::var(word(1)).unwrap_or_default()),
        "file" => print!("{}", std::fs::read_to_string(word(1)).expect("a file")),
        "exit" => std::process::exit(word(1).parse().expect("a code")),
        "tick" => tick(),
        "die" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("its end"),
        "crash" => {
            println!("run of {}", std::process::id());
            std::process::exit(3);
        }
        other => panic!("unknown mode {other}"),
    }
}

/// Counts aloud until told to end.
fn tick() {
    for number in 0.. {
        println!("tick {number}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn serve(port: &str) {
    let listener = TcpListener::bind(format!("[::]:{port}")).expect("a free port");
    println!("serving on {port}");
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let _ = writeln!(stream, "{name} {}", stream.peer_addr().map(|a| a.ip().to_canonical().to_string()).unwrap_or_default());
    }
}

fn call(target: &str, times: usize) {
    use std::net::ToSocketAddrs;
    for _ in 0..times {
        let addresses: Vec<_> = match target.to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(e) => return println!("unresolved: {e}"),
        };
        let mut last = String::from("no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                Ok(mut stream) => {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    last.clear();
                    if let Err(e) = stream.read_to_string(&mut last) {
                        last = format!("broken: {e}");
                    }
                    break;
                }
                Err(e) => last = format!("failed: {:?}", e.kind()),
            }
        }
        println!("{}", last.trim());
    }
}
