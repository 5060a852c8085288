//! The options of the sample service.
use clap::{Args, ValueEnum};
use http::{StatusCode, Uri};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Options of `lateen app`.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// Name of the service, as answers show it
    #[arg(long, env = "APP_NAME", default_value = "app")]
    pub name: String,
    /// Version of the service, as answers show it
    #[arg(long = "version", env = "APP_VERSION", default_value = "v1", value_name = "VERSION")]
    pub version: String,
    /// Address to listen on; the default is every address of both families
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Port for HTTP/1.1, HTTP/2, gRPC and WebSocket; 0 picks a free one
    #[arg(long, env = "APP_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Port for plain TCP, which echoes lines
    #[arg(long, value_name = "PORT")]
    pub tcp_port: Option<u16>,
    /// The TCP port speaks first, as databases and mail servers do
    #[arg(long, requires = "tcp_port")]
    pub server_first: bool,
    /// Call this before answering, and put its answer into ours; repeatable. http://, grpc:// or tcp://
    #[arg(long = "call", env = "APP_CALL", value_delimiter = ',', value_name = "URL", value_parser = parse_call)]
    pub calls: Vec<Uri>,
    /// Give up on a call after this long
    #[arg(long, default_value = "15s", value_parser = parse_duration, value_name = "TIME")]
    pub call_timeout: Duration,
    /// Forward this request header to calls too; repeatable
    #[arg(long = "forward", value_name = "HEADER")]
    pub forward: Vec<http::HeaderName>,
    /// Wait before answering: 20ms, or 20ms..80ms for a random time between
    #[arg(long, env = "APP_LATENCY", default_value = "0ms", value_name = "TIME[..TIME]")]
    pub latency: Latency,
    /// Share of requests to fail, 0 to 1
    #[arg(long, env = "APP_ERROR_RATE", default_value_t = 0.0, value_parser = parse_share, value_name = "SHARE")]
    pub error_rate: f64,
    /// Status of failed requests
    #[arg(long, default_value = "503", value_name = "CODE")]
    pub error_code: StatusCode,
    /// A text to put into answers
    #[arg(long, env = "APP_MESSAGE", value_name = "TEXT")]
    pub message: Option<String>,
    /// Fill answers up with this many bytes
    #[arg(long, default_value_t = 0, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(0..=64 << 20))]
    pub body_size: u64,
    /// Form of answers: JSON, or one line as in the Istio tutorial
    #[arg(long, env = "APP_FORMAT", value_enum, default_value_t = Format::Json)]
    pub format: Format,
    /// After SIGTERM keep accepting for this long, so that callers can learn that this endpoint goes
    #[arg(long, default_value = "0ms", value_parser = parse_duration, value_name = "TIME")]
    pub drain: Duration,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    /// `customer => preference => recommendation v1 from 'pod': 3`
    Tutorial,
}

/// How long to wait before answering: evenly spread between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    pub low: Duration,
    pub high: Duration,
}

impl Latency {
    /// A time between the bounds.
    pub fn sample(self, dice: &mut impl rand::Rng) -> Duration {
        if self.low >= self.high {
            return self.low;
        }
        self.low + (self.high - self.low).mul_f64(dice.random_range(0.0..1.0))
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let latency = Self { low: parse_duration(low)?, high: parse_duration(high)? };
        if latency.low > latency.high {
            return Err(format!("`{text}` ends before it begins"));
        }
        Ok(latency)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..{:?}", self.low, self.high)
    }
}

/// Reads `20ms`, `1.5s`, `2m`, `1h`; a bare number is seconds. A day is the longest.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{text}` is not a time; write it as 20ms, 1.5s or 2m")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("`{text}` is not a time; write it as 20ms, 1.5s or 2m"))? * scale;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(format!("`{text}` is not between 0 and 24h"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not between 0 and 1")),
    }
}

fn parse_call(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|e| format!("`{text}` is not a URL: {e}"))?;
    match uri.scheme_str() {
        Some("http" | "grpc") if uri.authority().is_some() => Ok(uri),
        Some("tcp") if uri.port_u16().is_some() => Ok(uri),
        Some("tcp") => Err(format!("`{text}` needs a port: tcp://host:port")),
        _ => Err(format!("`{text}` does not begin with http://, grpc:// or tcp://; the sidecar adds TLS, not the service")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("2").unwrap(), Duration::from_secs(2));
        for bad in ["", "ms", "5 parsecs", "-1s", "1e9h", "NaNs", "infs"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn latencies_stay_in_their_bounds() {
        let latency: Latency = "20ms..80ms".parse().unwrap();
        let mut dice = rand::rng();
        for _ in 0..200 {
            let waited = latency.sample(&mut dice);
            assert!(waited >= latency.low && waited <= latency.high);
        }
        assert_eq!("5ms".parse::<Latency>().unwrap().sample(&mut dice), Duration::from_millis(5));
        assert!("80ms..20ms".parse::<Latency>().is_err());
    }

    #[test]
    fn calls_need_a_scheme_that_is_spoken() {
        assert!(parse_call("http://ratings:8080/").is_ok());
        assert!(parse_call("grpc://ratings:8080").is_ok());
        assert!(parse_call("tcp://db:5432").is_ok());
        assert!(parse_call("https://ratings/").unwrap_err().contains("sidecar"));
        assert!(parse_call("tcp://db").is_err());
        assert!(parse_call("ratings").is_err());
    }
}
