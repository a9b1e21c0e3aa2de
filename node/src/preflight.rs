//! What `up` finds out before it writes anything: whether its doors are free.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::config::{Config, Dirs};
use crate::error::{Error, Result};
use crate::server;

/// Tries every address and socket that a daemon will listen on, and lets go of them again. Somebody else may still
/// take one before the daemon does; then the daemon says the same.
///
/// # Errors
/// The first that cannot be used, with the flag that names another.
pub fn check(dirs: &Dirs, config: &Config) -> Result<()> {
    dirs.check_sockets()?;
    server::check(dirs)?;
    let listen = &config.listen;
    let tcp = |address: SocketAddr| TcpListener::bind(address).map(drop);
    let udp = |address: SocketAddr| UdpSocket::bind(address).map(drop);
    let control = |e| listen_error("control plane", listen.control, "--control-listen", &e);
    udp(listen.control).map_err(control)?;
    tcp(listen.control).map_err(control)?;
    udp(listen.data).map_err(|e| listen_error("data plane", listen.data, "--data-listen", &e))?;
    tcp(listen.http).map_err(|e| listen_error("HTTP", listen.http, "--http-listen", &e))?;
    Ok(())
}

/// Why nothing can listen there, and which flag names another address.
pub(crate) fn listen_error(what: &str, address: SocketAddr, flag: &str, error: &std::io::Error) -> Error {
    let kind = error.kind();
    let error = Error::unavailable(format!("{what} cannot listen on {address}: {error}"));
    match kind {
        ErrorKind::AddrInUse => error.hint(format!(
            "is another daemon running? choose another port with {flag}; port 0 picks a free one"
        )),
        _ => error.hint(format!("choose another address with {flag}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_that_is_taken_is_named_with_its_flag() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dirs = Dirs::new(Some(dir.path().to_owned()), None, None, &Config::default());
        let mut free = Config::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (free.listen.control, free.listen.data, free.listen.http) = (any, any, any);
        check(&dirs, &free).expect("port 0 is always free");

        let tcp = TcpListener::bind(any).expect("a free port");
        let udp = UdpSocket::bind(any).expect("a free port");
        let (tcp, udp) = ((&tcp, tcp.local_addr().expect("bound")), (&udp, udp.local_addr().expect("bound")));
        type Place = fn(&mut Config) -> &mut SocketAddr;
        let cases: [(&str, Place, SocketAddr); 4] = [
            ("--control-listen", |c| &mut c.listen.control, tcp.1),
            ("--control-listen", |c| &mut c.listen.control, udp.1),
            ("--data-listen", |c| &mut c.listen.data, udp.1),
            ("--http-listen", |c| &mut c.listen.http, tcp.1),
        ];
        for (flag, place, taken) in cases {
            let mut config = free.clone();
            *place(&mut config) = taken;
            let error = check(&dirs, &config).expect_err("it is taken");
            assert!(error.message.contains(&taken.to_string()), "{error}");
            assert!(error.hint.is_some_and(|hint| hint.contains(flag)), "{flag}");
        }
    }

    #[test]
    fn a_socket_that_is_taken_or_is_none_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut config = Config::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen.control, config.listen.data, config.listen.http) = (any, any, any);
        let dirs = Dirs::new(None, Some(dir.path().to_owned()), None, &config);
        let listener = std::os::unix::net::UnixListener::bind(dirs.admin_socket()).expect("bound");
        assert!(check(&dirs, &config).expect_err("taken").message.contains("another daemon listens"));
        drop(listener);
        check(&dirs, &config).expect("what a killed daemon left behind is in nobody's way");
        std::fs::write(dirs.loader_socket(), "mine").expect("written");
        assert!(check(&dirs, &config).expect_err("a file").message.contains("not a socket"));
        assert_eq!(std::fs::read(dirs.loader_socket()).expect("there"), b"mine");
    }
}
