//! Servers on loopback with one behaviour each. Every connection has a thread, which writes exact bytes at exact times, so
//! that the servers share nothing with the generator that they test.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

/// A request as it arrived.
pub struct Request {
    pub body: serde_json::Value,
    /// Headers with names in small letters.
    pub headers: HashMap<String, String>,
}

/// A handler writes the answer to the stream and returns whether the connection goes on.
pub type Handler = dyn Fn(&Request, &mut TcpStream) -> bool + Send + Sync;

/// Starts a server. It ends with the process.
pub fn serve(handler: impl Fn(&Request, &mut TcpStream) -> bool + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let handler: Arc<Handler> = Arc::new(handler);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handler = handler.clone();
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                connection(stream, &*handler)
            });
        }
    });
    format!("http://{address}")
}

/// Answers requests until one side ends the connection.
fn connection(stream: TcpStream, handler: &Handler) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut headers = HashMap::new();
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        loop {
            line.clear();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        let request = Request { body: serde_json::from_slice(&body).ok()?, headers };
        if !handler(&request, &mut writer) {
            return None;
        }
    }
}

/// Writes the head of a stream of events.
pub fn head(stream: &mut TcpStream) -> bool {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).is_ok()
}

/// Writes bytes as one chunk.
pub fn chunk(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    stream.write_all(&framed).is_ok()
}

/// Ends the answer by its limit.
pub fn finish_event() -> String {
    let choice = serde_json::json!({"index": 0, "text": "", "delta": {}, "finish_reason": "length"});
    format!("data: {}\n\n", serde_json::json!({"choices": [choice]}))
}

/// Ends the answer, the stream of events and the body.
pub fn done(stream: &mut TcpStream) -> bool {
    chunk(stream, finish_event().as_bytes()) && end_mark(stream)
}

/// Ends the stream of events and the body.
pub fn end_mark(stream: &mut TcpStream) -> bool {
    chunk(stream, b"data: [DONE]\n\n") && stream.write_all(b"0\r\n\r\n").is_ok()
}

/// An event of a completion.
pub fn text_event(text: &str) -> String {
    format!("data: {}\n\n", serde_json::json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}))
}

/// An event with the usage.
pub fn usage_event(prompt_tokens: u64, completion_tokens: u64) -> String {
    let usage = serde_json::json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens});
    format!("data: {}\n\n", serde_json::json!({"choices": [], "usage": usage}))
}

/// A whole answer of `tokens` words, `per_event` in each event, `gap` apart.
pub fn answer(request: &Request, stream: &mut TcpStream, tokens: u64, per_event: u64, gap: Duration) -> bool {
    let prompt_tokens = request.body["prompt"].as_str().map_or(0, |prompt| prompt.split_whitespace().count() as u64);
    let mut sent = 0;
    head(stream)
        && (0..tokens.div_ceil(per_event)).all(|event| {
            if event > 0 {
                thread::sleep(gap);
            }
            let count = per_event.min(tokens - sent);
            sent += count;
            chunk(stream, text_event(&" word".repeat(count as usize)).as_bytes())
        })
        && chunk(stream, usage_event(prompt_tokens, tokens).as_bytes())
        && done(stream)
}

/// Answers at once with a status and a JSON error.
pub fn refuse(stream: &mut TcpStream, status: &str, headers: &str) -> bool {
    let body = r#"{"error": {"message": "no"}}"#;
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).is_ok() && stream.write_all(body.as_bytes()).is_ok()
}
