//! Why a head was refused: one reason for logs, metrics, error pages and tests alike.

/// One variant for each reason. The numbers in the sentences are those of `base::limits`; a test compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    LineFeedAlone,
    CarriageReturnAlone,
    LeadingWhiteSpace,
    BadRequestLine,
    BadMethod,
    MethodTooLong,
    ConnectRefused,
    TraceRefused,
    BadVersion,
    UnsupportedVersion,
    BadTarget,
    TargetByte,
    RequestLineTooLong,
    FieldLineTooLong,
    HeadTooLong,
    TooManyFields,
    BadFieldName,
    BadFieldValue,
    FramingLookalike,
    MissingHost,
    RepeatedHost,
    BadHost,
    BadConnection,
    LengthAndCoding,
    RepeatedContentLength,
    BadContentLength,
    BadTransferEncoding,
    UnknownTransferCoding,
    TransferEncodingIn10,
    TransferEncodingForbidden,
    BodyTooLarge,
    ExpectationFailed,
    UpgradeWithBody,
    BadStatusLine,
    BadStatus,
    BadReason,
}

impl Fault {
    /// Every reason, for whoever announces their labels.
    pub const ALL: [Self; 36] = [
        Self::LineFeedAlone,
        Self::CarriageReturnAlone,
        Self::LeadingWhiteSpace,
        Self::BadRequestLine,
        Self::BadMethod,
        Self::MethodTooLong,
        Self::ConnectRefused,
        Self::TraceRefused,
        Self::BadVersion,
        Self::UnsupportedVersion,
        Self::BadTarget,
        Self::TargetByte,
        Self::RequestLineTooLong,
        Self::FieldLineTooLong,
        Self::HeadTooLong,
        Self::TooManyFields,
        Self::BadFieldName,
        Self::BadFieldValue,
        Self::FramingLookalike,
        Self::MissingHost,
        Self::RepeatedHost,
        Self::BadHost,
        Self::BadConnection,
        Self::LengthAndCoding,
        Self::RepeatedContentLength,
        Self::BadContentLength,
        Self::BadTransferEncoding,
        Self::UnknownTransferCoding,
        Self::TransferEncodingIn10,
        Self::TransferEncodingForbidden,
        Self::BodyTooLarge,
        Self::ExpectationFailed,
        Self::UpgradeWithBody,
        Self::BadStatusLine,
        Self::BadStatus,
        Self::BadReason,
    ];
}

/// A refused head, and whose it was: the same fault is the client's error in a request and a bad gateway in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParseError {
    Request(Fault),
    Response(Fault),
}

impl ParseError {
    /// What was wrong.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::Request(fault) | Self::Response(fault) => fault,
        }
    }
    /// The status of the error page; always 502 for what an upstream did.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Request(fault) => fault.status(),
            Self::Response(_) => 502,
        }
    }
    /// A bounded metric label, and the `error` of the error page.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.fault().label()
    }
    /// A sentence with what was got and what the limit is.
    #[must_use]
    pub fn detail(self) -> &'static str {
        self.fault().detail()
    }
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.detail())
    }
}

impl std::error::Error for ParseError {}

impl Fault {
    /// The status when a request has this fault.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::ConnectRefused | Self::TraceRefused => 405,
            Self::BodyTooLarge => 413,
            Self::RequestLineTooLong => 414,
            Self::ExpectationFailed => 417,
            Self::FieldLineTooLong | Self::HeadTooLong | Self::TooManyFields => 431,
            Self::MethodTooLong | Self::UnknownTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            _ => 400,
        }
    }
    /// In snake case, for labels and for programs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::LineFeedAlone => "bare_lf",
            Self::CarriageReturnAlone => "bare_cr",
            Self::LeadingWhiteSpace => "folded_field",
            Self::BadRequestLine => "bad_request_line",
            Self::BadMethod => "bad_method",
            Self::MethodTooLong => "method_too_long",
            Self::ConnectRefused => "connect_refused",
            Self::TraceRefused => "trace_refused",
            Self::BadVersion => "bad_version",
            Self::UnsupportedVersion => "unsupported_version",
            Self::BadTarget => "bad_target",
            Self::TargetByte => "bad_target_byte",
            Self::RequestLineTooLong => "request_line_too_long",
            Self::FieldLineTooLong => "field_line_too_long",
            Self::HeadTooLong => "head_too_long",
            Self::TooManyFields => "too_many_fields",
            Self::BadFieldName => "bad_field_name",
            Self::BadFieldValue => "bad_field_value",
            Self::FramingLookalike => "framing_lookalike",
            Self::MissingHost => "missing_host",
            Self::RepeatedHost => "repeated_host",
            Self::BadHost => "bad_host",
            Self::BadConnection => "bad_connection",
            Self::LengthAndCoding => "length_and_coding",
            Self::RepeatedContentLength => "repeated_content_length",
            Self::BadContentLength => "bad_content_length",
            Self::BadTransferEncoding => "bad_transfer_encoding",
            Self::UnknownTransferCoding => "unknown_transfer_coding",
            Self::TransferEncodingIn10 => "transfer_encoding_in_http_1_0",
            Self::TransferEncodingForbidden => "transfer_encoding_without_body",
            Self::BodyTooLarge => "body_too_large",
            Self::ExpectationFailed => "unknown_expectation",
            Self::UpgradeWithBody => "upgrade_with_body",
            Self::BadStatusLine => "bad_status_line",
            Self::BadStatus => "bad_status",
            Self::BadReason => "bad_reason",
        }
    }
    /// For people.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::LineFeedAlone => "a line ended with LF alone; every line must end with CRLF",
            Self::CarriageReturnAlone => "a CR was not followed by LF",
            Self::LeadingWhiteSpace => "a line began with white space; folded fields are not accepted",
            Self::BadRequestLine => {
                "the first line is not a method, a target and a version with one space between them"
            }
            Self::BadMethod => "the method has a byte that no token may have",
            Self::MethodTooLong => "the method is longer than 32 bytes",
            Self::ConnectRefused => "CONNECT is not served here",
            Self::TraceRefused => "TRACE is not served here",
            Self::BadVersion => "the version is not HTTP/1.0 or HTTP/1.1",
            Self::UnsupportedVersion => "only HTTP/1.0 and HTTP/1.1 are spoken here",
            Self::BadTarget => "the request target is not a path, an http URI or, for OPTIONS, an asterisk",
            Self::TargetByte => "the request target has a byte that must be percent-encoded, or an encoded NUL",
            Self::RequestLineTooLong => "the request line is longer than 8190 bytes",
            Self::FieldLineTooLong => "a field line is longer than 8187 bytes",
            Self::HeadTooLong => "the head is longer than 32768 bytes",
            Self::TooManyFields => "the head has more than 89 fields in a request, or 100 in a response",
            Self::BadFieldName => "a field line has no colon, or a name that is not a token directly before it",
            Self::BadFieldValue => "a field value has a control byte",
            Self::FramingLookalike => "a field is named almost like Content-Length or Transfer-Encoding",
            Self::MissingHost => "an HTTP/1.1 request must have a Host field",
            Self::RepeatedHost => "the Host field is there more than once",
            Self::BadHost => "the host is not a name or an address with an optional port from 1 to 65535",
            Self::BadConnection => {
                "Connection names Host, Content-Length or Transfer-Encoding, or more than 32 options"
            }
            Self::LengthAndCoding => "Content-Length and Transfer-Encoding came together",
            Self::RepeatedContentLength => "the Content-Length field is there more than once",
            Self::BadContentLength => "the Content-Length is not a plain decimal number below 2^64",
            Self::BadTransferEncoding => "the Transfer-Encoding is not a single chunked",
            Self::UnknownTransferCoding => "the transfer coding is not known here; only chunked is",
            Self::TransferEncodingIn10 => "an HTTP/1.0 message must not have a Transfer-Encoding",
            Self::TransferEncodingForbidden => "a response that can have no body has a Transfer-Encoding",
            Self::BodyTooLarge => "the body is longer than the configured max_request_body",
            Self::ExpectationFailed => "the Expect field says something other than 100-continue",
            Self::UpgradeWithBody => "a request that asks for an upgrade must not have a body",
            Self::BadStatusLine => "the first line is not a version, three digits and a reason",
            Self::BadStatus => "the status is not from 100 to 599",
            Self::BadReason => "the reason phrase has a control byte",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits;

    #[test]
    fn sentences_name_the_real_limits() {
        for (fault, limit) in [
            (Fault::MethodTooLong, limits::METHOD_BYTES_MAX),
            (Fault::RequestLineTooLong, limits::REQUEST_LINE_BYTES_MAX),
            (Fault::FieldLineTooLong, limits::FIELD_LINE_BYTES_MAX),
            (Fault::HeadTooLong, limits::HEAD_BYTES_MAX),
            (Fault::TooManyFields, limits::REQUEST_FIELDS_MAX),
        ] {
            assert!(
                fault.detail().contains(&format!(" {limit} ")) || fault.detail().ends_with(&format!(" {limit} bytes")),
                "{fault:?}"
            );
        }
    }

    #[test]
    fn an_upstreams_fault_is_always_502() {
        assert_eq!(ParseError::Response(Fault::FieldLineTooLong).status(), 502);
        assert_eq!(ParseError::Request(Fault::FieldLineTooLong).status(), 431);
    }
}
