//! What can be asked for: URLs of every kind, with every value of what they depend on, and with client directives. Made once
//! for all episodes, because it never changes.

use pilotlight::shard::query::Query;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The response depends on `X-V`.
    Varies,
    /// The response depends on the set of codings in Accept-Encoding.
    Negotiates,
    /// The response depends on `X-V`, and in odd versions on `X-W` as well.
    Shifts,
    Uncacheable,
    /// Kept for each value of Authorization.
    PerCredential,
}

impl Kind {
    /// What the Vary of a response of this version names.
    pub fn depends_on(self, version: u64) -> &'static [&'static str] {
        match self {
            Self::Varies => &["X-V"],
            Self::Negotiates => &["Accept-Encoding"],
            Self::Shifts if version % 2 == 1 => &["X-W", "X-V"],
            Self::Shifts => &["X-V"],
            Self::Plain | Self::Uncacheable | Self::PerCredential => &[],
        }
    }

    /// The request fields with which it is asked for.
    fn fields(self) -> Vec<Vec<(&'static str, &'static str)>> {
        let each = |name, values: &[&'static str]| values.iter().map(|value| vec![(name, *value)]).collect();
        match self {
            Self::Plain | Self::Uncacheable => each("X-Other", &["", "1"]),
            Self::Varies => each("X-V", &["", "1", "2"]),
            Self::Negotiates => each("Accept-Encoding", &["", "gzip", "br, gzip", "GZIP;q=0.5 ,br", "deflate;q=0"]),
            Self::Shifts => ["", "1"].iter().flat_map(|v| ["", "1"].map(|w| vec![("X-V", *v), ("X-W", w)])).collect(),
            Self::PerCredential => each("Authorization", &["", "1", "2"]),
        }
    }

    pub fn varies(self) -> bool {
        matches!(self, Self::Varies | Self::Negotiates | Self::Shifts)
    }
}

pub struct Url {
    pub host: &'static str,
    pub target: String,
    pub kind: Kind,
    pub route: u16,
    pub tags: Vec<&'static str>,
}

impl Url {
    pub fn key(&self) -> String {
        format!("{}{}", self.host, self.target)
    }
}

/// One way to ask for a URL.
pub struct Ask {
    pub query: Arc<Query>,
    pub url: usize,
    pub directives: &'static str,
}

pub struct Catalogue {
    pub urls: Vec<Url>,
    pub asks: Vec<Ask>,
    /// For each URL the asks for it.
    pub by_url: Vec<Vec<usize>>,
    /// Every key: its number, and the URL that it belongs to.
    pub keys: HashMap<Box<[u8]>, (usize, usize)>,
    pub hasher: ahash::RandomState,
}

const DIRECTIVES: [&str; 9] =
    ["", "", "", "no-cache", "max-age=0", "max-stale", "min-fresh=1", "only-if-cached", "only-if-cached, max-stale"];
pub const HOSTS: [&str; 2] = ["h", "i"];
/// The first halves of the second one's members are the first's, so that a prefix that is no folder means several URLs.
pub const PREFIXES: [&str; 4] = ["/a/", "/b/", "/a/1", "/"];
pub const TAGS: [&str; 3] = ["even", "odd", "third"];

impl Catalogue {
    pub fn new() -> Self {
        let kinds = [
            Kind::Plain,
            Kind::Varies,
            Kind::Negotiates,
            Kind::PerCredential,
            Kind::Shifts,
            Kind::Uncacheable,
            Kind::Plain,
            Kind::Varies,
        ];
        let urls = (0..16).map(|at| {
            // "/b/a/" begins with no prefix that it contains.
            let target = format!("/{}/{at}", ["a", if at % 4 == 3 { "b/a" } else { "b" }][at / 4 % 2]);
            let mut tags = vec![TAGS[at % 2]];
            if at % 3 == 0 {
                tags.push("third");
            }
            Url { host: HOSTS[usize::from(at >= 12)], target, kind: kinds[at % 8], route: (at % 3 % 2) as u16, tags }
        });
        let mut catalogue = Self {
            urls: urls.collect(),
            asks: Vec::new(),
            by_url: Vec::new(),
            keys: HashMap::new(),
            hasher: ahash::RandomState::with_seeds(1, 2, 3, 4),
        };
        for url in 0..catalogue.urls.len() {
            catalogue.add_asks(url);
        }
        catalogue
    }

    fn add_asks(&mut self, url: usize) {
        let from = self.asks.len();
        for fields in self.urls[url].kind.fields() {
            for directives in DIRECTIVES {
                let given = fields.iter().copied().chain([("Cache-Control", directives)]);
                let given = given.filter(|(_, value)| !value.is_empty());
                let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
                let made = &self.urls[url];
                let (buf, head) = Query::synthetic(made.host, &made.target, "http", given).expect("well formed");
                let per_credential = made.kind == Kind::PerCredential;
                let query = Query::new(&self.hasher, buf, head, made.route, per_credential, None, true);
                let number = self.keys.len();
                self.keys.entry(query.key.clone()).or_insert((number, url));
                self.asks.push(Ask { query: Arc::new(query), url, directives });
            }
        }
        self.by_url.push((from..self.asks.len()).collect());
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

/// What a request says in these fields, in a form in which the same is equal.
pub fn variant(buf: &[u8], names: &[&str]) -> Vec<String> {
    let value = |name: &&str| match (*name, field(buf, name)) {
        ("Accept-Encoding", value) if !value.is_empty() => format!("codings {:?}", codings(&value)),
        (_, value) => value,
    };
    names.iter().map(value).collect()
}

/// The codings that a list accepts.
fn codings(list: &str) -> BTreeSet<String> {
    let members = list.split(',').map(|member| member.trim().to_ascii_lowercase());
    members
        .filter(|member| !member.ends_with(";q=0"))
        .map(|member| member.split(';').next().unwrap_or("").to_owned())
        .collect()
}
