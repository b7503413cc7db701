//! Sockets that a client can speak through.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};

use super::Endpoint;

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to `endpoint`, from the local address `bind` if there is one.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    bind: Option<&str>,
) -> io::Result<Box<dyn Stream>> {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = connect_tcp(host, *port, bind).await?;
            // Packets are gathered here already; waiting for more in the kernel only delays them.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}

async fn connect_tcp(host: &str, port: u16, bind: Option<&str>) -> io::Result<TcpStream> {
    let local: Vec<SocketAddr> = match bind {
        Some(bind) => lookup_host((bind, 0)).await?.collect(),
        None => Vec::new(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((host, port)).await? {
        let attempt = match bind {
            None => TcpStream::connect(address).await,
            Some(_) => connect_from(&local, address).await,
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_from(local: &[SocketAddr], remote: SocketAddr) -> io::Result<TcpStream> {
    let same_family = local.iter().find(|address| address.is_ipv4() == remote.is_ipv4());
    let local = same_family.ok_or_else(|| {
        io::Error::new(io::ErrorKind::AddrNotAvailable, "no local address of the broker's family")
    })?;
    let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(*local)?;
    socket.connect(remote).await
}
