//! What can be asked for: URLs of every kind, with every value of what they depend on, and with client directives. Made once
//! for all episodes, because it never changes.

use pilotlight::cache::vary::{self, Vary, VarySpec};
use pilotlight::http::head::{FieldsView, ResponseHead};
use pilotlight::http::parse;
use pilotlight::shard::query::Query;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The response depends on `X-V`.
    Varies,
    Uncacheable,
    /// Kept for each value of Authorization.
    PerCredential,
}

pub struct Url {
    pub target: String,
    pub kind: Kind,
    pub route: u16,
    /// The first part of its path, for purges by prefix.
    pub group: &'static str,
    pub tag: &'static str,
}

/// One way to ask for a URL.
pub struct Ask {
    pub query: Arc<Query>,
    pub url: usize,
    pub has_directives: bool,
}

pub struct Catalogue {
    pub urls: Vec<Url>,
    pub asks: Vec<Ask>,
    /// For each URL the asks for it.
    pub by_url: Vec<Vec<usize>>,
    /// Every key: its number, and the URL that it belongs to.
    pub keys: HashMap<Box<[u8]>, (usize, usize)>,
    pub hasher: ahash::RandomState,
    vary: (ResponseHead, Vec<u8>),
}

const DIRECTIVES: [&str; 6] = ["", "", "no-cache", "max-age=0", "max-stale", "min-fresh=1"];
pub const GROUPS: [&str; 2] = ["a", "b"];
pub const TAGS: [&str; 2] = ["even", "odd"];

impl Catalogue {
    pub fn new() -> Self {
        let kinds = [Kind::Plain, Kind::Varies, Kind::Plain, Kind::PerCredential, Kind::Varies, Kind::Uncacheable];
        let urls = (0..12).map(|at| {
            let group = GROUPS[at / 6];
            let target = format!("/{group}/{at}");
            Url { target, kind: kinds[at % 6], route: (at % 3 % 2) as u16, group, tag: TAGS[at % 2] }
        });
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVary: X-V\r\n\r\n".to_vec();
        let mut head = ResponseHead::new();
        parse::response(&text, pilotlight::http::head::Method::Get, &mut head).expect("well formed");
        let mut catalogue = Self {
            urls: urls.collect(),
            asks: Vec::new(),
            by_url: Vec::new(),
            keys: HashMap::new(),
            hasher: ahash::RandomState::with_seeds(1, 2, 3, 4),
            vary: (head, text),
        };
        for url in 0..catalogue.urls.len() {
            catalogue.add_asks(url);
        }
        catalogue
    }

    fn add_asks(&mut self, url: usize) {
        let from = self.asks.len();
        let name = match self.urls[url].kind {
            Kind::Plain | Kind::Uncacheable => "X-Other",
            Kind::Varies => "X-V",
            Kind::PerCredential => "Authorization",
        };
        for value in ["", "1", "2"] {
            for directive in DIRECTIVES {
                let mut fields = Vec::new();
                if !value.is_empty() {
                    fields.push((name.to_owned(), value.to_owned()));
                }
                if !directive.is_empty() {
                    fields.push(("Cache-Control".to_owned(), directive.to_owned()));
                }
                let made = &self.urls[url];
                let (buf, head) = Query::synthetic("h", &made.target, "http", fields.into_iter()).expect("well formed");
                let per_credential = made.kind == Kind::PerCredential;
                let query = Query::new(&self.hasher, buf, head, made.route, per_credential, None, true);
                let number = self.keys.len();
                self.keys.entry(query.key.clone()).or_insert((number, url));
                self.asks.push(Ask { query: Arc::new(query), url, has_directives: !directive.is_empty() });
            }
        }
        self.by_url.push((from..self.asks.len()).collect());
    }

    /// What a response to this request says about variants.
    pub fn vary_of(&self, kind: Kind, request: FieldsView<'_>) -> Option<VarySpec> {
        match vary::of_response(self.vary.0.view(&self.vary.1), request) {
            Vary::On(spec) if kind == Kind::Varies => Some(spec),
            _ => None,
        }
    }
}

/// The value of a request field, read without the code under test.
pub fn field(buf: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(buf);
    let line = text
        .lines()
        .skip(1)
        .find(|line| line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name)));
    line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, value)| value.trim().to_owned())
}
