//! Lines over TCP: sends each and prints what comes back; without lines it waits for the server to speak.
use std::io::{BufRead, BufReader, Write};

use super::connect;

pub(crate) fn run(address: &str, lines: &[&str]) -> anyhow::Result<()> {
    let mut stream = connect(address)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut hear = || {
        let mut line = String::new();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "the connection was closed");
        print!("{line}");
        Ok(())
    };
    if lines.is_empty() {
        return hear();
    }
    for line in lines {
        stream.write_all(format!("{line}\n").as_bytes())?;
        hear()?;
    }
    Ok(())
}
