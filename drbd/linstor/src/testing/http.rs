//! As much of HTTP/1.1 as a client with one request for each connection needs.

use std::io::{self, Read, Write};

/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Longest body of a request, in bytes.
const BODY_MAX: usize = 1 << 20;

/// What a request comes on.
pub(super) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// The head of a request.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) authorization: Option<String>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads a request with its body.
pub(super) fn read(stream: &mut impl Stream) -> io::Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if bytes.len() > HEAD_MAX || !read_more(stream, &mut bytes)? {
            return Err(bad("a request without an end"));
        }
        if !bytes[0].is_ascii_uppercase() {
            return Err(bad("not HTTP, but perhaps TLS"));
        }
    };
    let (head, body_len) = parse(&bytes[..head_len])?;
    let mut body = bytes.split_off(head_len);
    while body.len() < body_len {
        if !read_more(stream, &mut body)? {
            return Err(bad("a request that was cut"));
        }
    }
    Ok((head, body))
}

/// Whether there was more.
fn read_more(stream: &mut impl Stream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buf = [0; 4096];
    let len = stream.read(&mut buf)?;
    bytes.extend_from_slice(&buf[..len]);
    Ok(len > 0)
}

/// The head of a request, and the length of its body.
fn parse(head: &[u8]) -> io::Result<(Head, usize)> {
    let head = str::from_utf8(head).map_err(|_| bad("a head that is no text"))?;
    let mut lines = head.split("\r\n");
    let words: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err(bad("no request of HTTP")) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), value.to_owned())
    });
    let mut read = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.collect(),
        authorization: None,
    };
    let mut body_len = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let len = value.trim().parse().ok().filter(|len| *len <= BODY_MAX);
                body_len = len.ok_or_else(|| bad("a body that is too long"))?;
            }
            "authorization" => read.authorization = Some(value.trim().to_owned()),
            "transfer-encoding" => return Err(bad("a body without a length")),
            _ => {}
        }
    }
    Ok((read, body_len))
}

/// Writes an answer of JSON.
pub(super) fn write(stream: &mut impl Stream, status: u16, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()
}

/// Writes an answer until the client has enough of it.
pub(super) fn write_without_end(stream: &mut impl Stream) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n")?;
    let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
    loop {
        stream.write_all(&chunk)?;
    }
}

/// Reads until the client is gone.
pub(super) fn wait_for_end(stream: &mut impl Stream) -> io::Result<()> {
    while read_more(stream, &mut Vec::new())? {}
    Ok(())
}
