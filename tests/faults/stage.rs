//! A server on loopback that answers as a test says, byte for byte.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Longest time that a connection is kept, so that a test that fails ends.
const LONGEST: Duration = Duration::from_secs(30);

/// An answer to a request.
#[derive(Clone)]
pub enum Answer {
    /// Bytes at once, and the end.
    Bytes(Vec<u8>),
    /// Nothing, while the connection stays open.
    Silence,
    /// The first bytes at once, then those of the second one by one, then the second again.
    Drip(Vec<u8>, Vec<u8>),
    /// The first bytes, then spaces without end.
    Endless(Vec<u8>),
}

/// A server that runs until the program ends.
pub struct Stage {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    /// Answers each request by its path, without the query.
    pub fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (answer.clone(), seen.clone());
                thread::spawn(move || {
                    let _ = serve(stream, answer.as_ref(), &seen);
                });
            }
        });
        Self { endpoint, requests }
    }

    /// The heads of all requests so far, in lower case.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("requests").clone()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &(dyn Fn(&str) -> Answer + Send + Sync),
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LONGEST))?;
    stream.set_write_timeout(Some(LONGEST))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let url = head.split(' ').nth(1).unwrap_or_default();
    let path = url.split('?').next().unwrap_or_default().to_owned();
    seen.lock().expect("requests").push(head);
    match answer(&path) {
        Answer::Bytes(bytes) => stream.write_all(&bytes),
        Answer::Silence => {
            // Returns when the other side gives up.
            let _ = stream.read(&mut [0]);
            Ok(())
        }
        Answer::Drip(first, rest) => {
            stream.write_all(&first)?;
            for byte in rest.iter().cycle().take(1000) {
                stream.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Answer::Endless(first) => {
            stream.write_all(&first)?;
            loop {
                stream.write_all(&[b' '; 1 << 16])?;
            }
        }
    }
}

/// An answer with its length.
pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut bytes = head(status, headers, Some(body.len() as u64));
    bytes.extend(body);
    Answer::Bytes(bytes)
}

/// The head of an answer.
pub fn head(status: u16, headers: &[(&str, &str)], length: Option<u64>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    format!("{head}\r\n").into_bytes()
}
