//! Where gdb connects.

use bivisor::gdb::Address;

/// `tcp:PORT`, `tcp:HOST:PORT` or `unix:PATH`.
pub fn address(text: &str) -> Result<Address, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
        Some(("tcp", at)) => {
            let (host, port) = at.rsplit_once(':').unwrap_or(("127.0.0.1", at));
            let port: u16 = port.parse().map_err(|_| "the port is not a number up to 65535")?;
            match host {
                "" => Err("the host is missing (tcp:PORT listens on 127.0.0.1)".into()),
                _ => Ok(Address::Tcp(format!("{host}:{port}"))),
            }
        }
        _ => Err("not tcp:PORT, tcp:HOST:PORT or unix:PATH".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |at: &str| Ok(Address::Tcp(at.into()));
        for (text, expected) in [
            ("tcp:1234", tcp("127.0.0.1:1234")),
            ("tcp:0.0.0.0:1", tcp("0.0.0.0:1")),
            ("tcp:[::1]:1234", tcp("[::1]:1234")),
            ("unix:a:b", Ok(Address::Unix("a:b".into()))),
            ("tcp:65536", Err(())),
            ("tcp:host:", Err(())),
            ("tcp::1", Err(())),
            ("unix:", Err(())),
            (":1234", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(address(text).map_err(|_| ()), expected, "{text}");
        }
    }
}
