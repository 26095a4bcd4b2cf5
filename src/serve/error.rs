//! Errors as OpenAI's interface shows them.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::text;

/// A refusal or a failure, in one line.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    /// A word for programs.
    code: Option<&'static str>,
    retry_after_s: Option<u64>,
}

/// The body of an answer that is an error.
#[derive(Serialize, JsonSchema)]
pub struct Error {
    error: Problem,
}

/// The reason of an error.
#[derive(Serialize, JsonSchema)]
struct Problem {
    message: String,
    r#type: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    /// A word for programs.
    code: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        // Messages quote the request.
        let message = text::line(&message.into());
        Self { status, message, param: None, code: None, retry_after_s: None }
    }

    /// An error of the client.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// An error in a field of the body, which starts the message.
    pub fn field(param: &str, problem: impl std::fmt::Display) -> Self {
        Self { param: Some(text::line(param)), ..Self::bad(format!("{param}: {problem}")) }
    }

    /// A prompt or an answer that is longer than the model or the server permits.
    pub fn too_long(param: &str, problem: impl std::fmt::Display) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::field(param, problem) }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// The object that is the body, or an event of a stream.
    pub fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let (message, param) = (self.message.clone(), self.param.clone());
        json!(Error { error: Problem { message, r#type: kind, param, code: self.code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 15.5.2.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
