//! One question to one controller, and which controller that is.
//!
//! A connection is made for each question and not kept: there are few, and so a change never goes
//! into one that the controller has closed, which would leave open whether it was made.

use std::{
    fmt, io,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde::de::DeserializeOwned;
use ureq::{
    Agent, Timeout,
    http::{HeaderValue, Method, Request, Response, header},
    tls::TlsConfig,
};

use crate::{Attempt, ClientConfig, Controller, ControllerVersion, LinstorError, TlsFiles, answer};

/// Longest head of an answer, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Longest answer to a change, or telling an error, in bytes.
const MESSAGES_MAX: u64 = 1 << 20;
/// Longest list, in bytes: some ten thousand resources.
const LIST_MAX: u64 = 64 << 20;
/// Longest answer about the controller itself, in bytes.
const VERSION_MAX: u64 = 64 << 10;
/// Most characters of an answer that are told.
const BEGINNING: usize = 200;
/// Stands for no controller.
const NONE: usize = usize::MAX;

/// What is asked.
pub(crate) struct Question {
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
    limit: u64,
}

impl Question {
    /// What is only read.
    pub(crate) const fn read(path: String) -> Self {
        Self { method: Method::GET, path, body: None, limit: LIST_MAX }
    }

    /// What is made, from this JSON.
    pub(crate) const fn create(path: String, body: Vec<u8>) -> Self {
        Self { method: Method::POST, path, body: Some(body), limit: MESSAGES_MAX }
    }

    /// What is deleted.
    pub(crate) const fn delete(path: String) -> Self {
        Self { method: Method::DELETE, path, body: None, limit: MESSAGES_MAX }
    }

    fn version() -> Self {
        let path = "/v1/controller/version".to_owned();
        Self { method: Method::GET, path, body: None, limit: VERSION_MAX }
    }

    fn only_reads(&self) -> bool {
        self.method == Method::GET
    }

    /// What an answer of JSON says.
    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, LinstorError> {
        serde_json::from_slice(body).map_err(|error| self.not_understood(body, &error))
    }

    /// An answer that says something else than it should.
    pub(crate) fn not_understood(&self, body: &[u8], why: &dyn fmt::Display) -> LinstorError {
        LinstorError::NotUnderstood {
            request: self.to_string(),
            why: why.to_string(),
            beginning: beginning(body),
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Why a question has no answer.
enum Failure {
    /// The controller never heard it.
    Unsent(String),
    /// It may have.
    Cut(String),
    /// It has, and this is what it said.
    Answered(LinstorError),
}

/// A client of LINSTOR. It may be used by several threads.
#[derive(Debug)]
pub struct Client {
    controllers: Vec<Controller>,
    reading: Agent,
    changing: Agent,
    authorization: Option<HeaderValue>,
    /// The controller that answered last.
    live: AtomicUsize,
}

impl Client {
    /// A client of these controllers. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// Files that cannot be used, no controller, a token that would cross a network in clear,
    /// and certificates where no controller is spoken to with TLS.
    pub fn new(config: &ClientConfig) -> Result<Self, LinstorError> {
        let controllers = config.controllers.clone();
        let misuse = |why: String| Err(LinstorError::Misuse(why));
        if controllers.is_empty() {
            return misuse("no LINSTOR controller is named".to_owned());
        }
        let open =
            controllers.iter().find(|controller| !controller.tls() && !controller.is_local());
        if let (Some(open), Some(_)) = (open, &config.token) {
            return misuse(format!(
                "the token would cross the network in clear to {open}: use https, or a \
                 controller on this machine"
            ));
        }
        let tls = controllers.iter().any(Controller::tls);
        if !tls && config.tls != TlsFiles::default() {
            return misuse("certificates are given, but no controller with https".to_owned());
        }
        let mut authorization = None;
        if let Some(token) = &config.token {
            let value = HeaderValue::try_from(token.header());
            let mut value = value.map_err(|error| LinstorError::Misuse(error.to_string()))?;
            value.set_sensitive(true);
            authorization = Some(value);
        }
        let tls = tls.then(|| config.tls.load()).transpose()?;
        let agent = |timeout| agent(tls.as_ref(), config.timeouts.connect, timeout);
        Ok(Self {
            controllers,
            reading: agent(config.timeouts.read),
            changing: agent(config.timeouts.change),
            authorization,
            live: AtomicUsize::new(NONE),
        })
    }

    /// Which controller answers, and its versions.
    ///
    /// # Errors
    ///
    /// As every call: no controller, one that denies it, and one that is none.
    pub fn version(&self) -> Result<ControllerVersion, LinstorError> {
        self.look().map(|(_, version)| version)
    }

    /// The answer of the controller that answers.
    ///
    /// What only reads is asked again of another one if the connection fails, what changes only
    /// if it surely was not heard.
    pub(crate) fn ask(&self, question: &Question) -> Result<Vec<u8>, LinstorError> {
        if let Some(controller) = self.controllers.get(self.live.load(Ordering::Relaxed)) {
            match self.ask_one(controller, question) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Answered(error)) => return Err(error),
                Err(Failure::Cut(why)) if !question.only_reads() => {
                    return Err(lost(question, controller, why));
                }
                Err(Failure::Cut(_) | Failure::Unsent(_)) => {
                    self.live.store(NONE, Ordering::Relaxed);
                }
            }
        }
        let (controller, _) = self.look()?;
        self.ask_one(controller, question).map_err(|failure| match failure {
            Failure::Answered(error) => error,
            Failure::Cut(why) if !question.only_reads() => lost(question, controller, why),
            Failure::Cut(why) | Failure::Unsent(why) => {
                LinstorError::Unreachable { tried: vec![attempt(controller, why)] }
            }
        })
    }

    /// The first controller that answers.
    fn look(&self) -> Result<(&Controller, ControllerVersion), LinstorError> {
        let question = Question::version();
        let mut tried = Vec::new();
        for (place, controller) in self.controllers.iter().enumerate() {
            let why = match self.ask_one(controller, &question) {
                Ok(body) => match question.parse(&body) {
                    Ok(version) => {
                        self.live.store(place, Ordering::Relaxed);
                        return Ok((controller, version));
                    }
                    Err(error) => error.to_string(),
                },
                // It is the one, and another would say the same.
                Err(Failure::Answered(error @ LinstorError::Denied { .. })) => return Err(error),
                Err(Failure::Answered(error)) => error.to_string(),
                Err(Failure::Cut(why) | Failure::Unsent(why)) => why,
            };
            tried.push(attempt(controller, why));
        }
        Err(LinstorError::Unreachable { tried })
    }

    fn ask_one(&self, controller: &Controller, question: &Question) -> Result<Vec<u8>, Failure> {
        let agent = if question.only_reads() { &self.reading } else { &self.changing };
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(format!("{controller}{}", question.path))
            .header(header::ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = match &question.body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.as_slice())
                .map(|request| agent.run(request)),
            None => request.body(()).map(|request| agent.run(request)),
        };
        let response = response.map_err(|error| Failure::Unsent(error.to_string()))?;
        let mut response = response.map_err(|error| failure(&error))?;
        let ok = response.status().is_success();
        let limit = if ok { question.limit } else { MESSAGES_MAX };
        let too_long = || {
            let (request, controller) = (question.to_string(), controller.clone());
            Failure::Answered(LinstorError::TooLong { request, controller, limit })
        };
        if response.body().content_length().is_some_and(|len| len > limit) {
            return Err(too_long());
        }
        let body = response.body_mut().with_config().limit(limit).read_to_vec();
        let body = body.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => too_long(),
            error => Failure::Cut(error.to_string()),
        })?;
        match ok {
            true => Ok(body),
            false => Err(Failure::Answered(self.refusal(controller, question, &response, &body))),
        }
    }

    /// What an answer means whose status is not one of success.
    fn refusal<B>(
        &self,
        controller: &Controller,
        question: &Question,
        response: &Response<B>,
        body: &[u8],
    ) -> LinstorError {
        let (request, controller) = (question.to_string(), controller.clone());
        let status = response.status().as_u16();
        let messages = answer::messages(body).unwrap_or_default();
        match status {
            300..=399 => {
                let to = response.headers().get(header::LOCATION);
                let to = beginning(to.map_or(b"", |to| to.as_bytes()));
                LinstorError::OtherReplicas { request, controller, to }
            }
            401 | 403 => {
                let token = self.authorization.is_some();
                LinstorError::Denied { request, controller, status, token, messages }
            }
            _ if messages.is_empty() => {
                LinstorError::Status { request, controller, status, beginning: beginning(body) }
            }
            _ => LinstorError::Refused { request, status, messages },
        }
    }
}

fn agent(tls: Option<&TlsConfig>, connect: Duration, whole: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_response_header_size(HEAD_MAX)
        .max_idle_connections(0)
        // A controller is in the same network, and the proxy of that is for other things.
        .proxy(None)
        .user_agent(concat!("driftline/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(connect))
        .timeout_global(Some(whole));
    match tls {
        Some(tls) => config.tls_config(tls.clone()),
        None => config,
    }
    .build()
    .new_agent()
}

fn attempt(controller: &Controller, why: String) -> Attempt {
    Attempt { controller: controller.clone(), why }
}

fn lost(question: &Question, controller: &Controller, why: String) -> LinstorError {
    LinstorError::Lost { request: question.to_string(), controller: controller.clone(), why }
}

/// Whether the controller may have heard a question that came to this.
fn failure(error: &ureq::Error) -> Failure {
    use io::ErrorKind;
    let unsent = match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
        ),
        _ => false,
    };
    let why = match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    };
    if unsent { Failure::Unsent(why) } else { Failure::Cut(why) }
}

/// The beginning of an answer, for a message.
fn beginning(body: &[u8]) -> String {
    // A character has four bytes at most.
    let start = &body[..body.len().min(4 * BEGINNING)];
    String::from_utf8_lossy(start).chars().take(BEGINNING).collect()
}
