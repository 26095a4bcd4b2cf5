//! Connections of clients: a limited number of them, each with limited time.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, http::Request, response::IntoResponse};
use hyper::{StatusCode, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout, timeout_at},
};

use super::{Limits, error::ApiError};

/// Most bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Wait after the system refused a connection, for example because too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients until the task is aborted. Connections end after their answer when `stopped` becomes true.
pub async fn accept(listener: TcpListener, router: Router, limits: Limits, stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(limits.max_connections));
    while let Ok(place) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone(), limits, stopped.clone(), place));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// A service that notes when the last request came.
struct Noting {
    inner: TowerToHyperService<Router>,
    last: Arc<Mutex<Instant>>,
}

impl Service<Request<Incoming>> for Noting {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.inner.call(request)
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let last = Arc::new(Mutex::new(Instant::now()));
    let service = Noting { inner: TowerToHyperService::new(router), last: last.clone() };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_timeout)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let ended = {
        let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
        let mut is_told = false;
        let mut served = pin!(poll_fn(|cx| {
            if !is_told && stop.as_mut().poll(cx).is_ready() {
                is_told = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            Pin::new(&mut connection).poll(cx)
        }));
        // A request takes no longer than this, and an idle connection is closed sooner. A client that does not read its
        // answer is cut off.
        let longest = limits.request_timeout + 3 * limits.read_timeout;
        loop {
            let until = *last.lock().unwrap_or_else(PoisonError::into_inner) + longest;
            match timeout_at(until.into(), served.as_mut()).await {
                Ok(ended) => break ended,
                Err(_) if *last.lock().unwrap_or_else(PoisonError::into_inner) + longest <= Instant::now() => return,
                Err(_) => {}
            }
        }
    };
    // A client that does not complete the head of its request gets no answer from hyper.
    let Err(error) = ended else { return };
    let parts = connection.into_parts();
    let refusal = match () {
        () if parts.read_buf.is_empty() => return,
        () if error.is_timeout() => {
            let problem = format!("the head was not complete within {} s", limits.read_timeout.as_secs_f64());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, problem)
        }
        () if error.is_incomplete_message() => ApiError::bad("the request ended before its head was complete"),
        () => return,
    };
    refuse(parts.io.into_inner(), refusal, limits.read_timeout).await;
}

/// Writes an answer without HTTP's machinery. It fits into the socket's buffer.
async fn refuse(stream: TcpStream, error: ApiError, patience: Duration) {
    let body = error.json().to_string();
    let status = error.into_response().status();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    if let Ok(Ok(())) = timeout(patience, stream.writable()).await {
        let _ = stream.try_write(answer.as_bytes());
    }
}
