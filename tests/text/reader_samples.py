"""Small files of the formats that need making: pages, archive records, PDF."""

ARTICLE = "<html><head><title>T</title></head><body><nav><a href='/'>Home</a></nav><article>{}</article></body></html>"
SENTENCE = "The quick brown fox jumps over the lazy dog while the {} looks on from the bank. "


def page(word: str) -> str:
    return ARTICLE.format("".join(f"<p>Number {n}. {SENTENCE.format(word) * 3}</p>" for n in range(3)))


def response(url: str, body: bytes, headers: str = "Content-Type: text/html", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body
    return record("response", url, http, "application/http; msgtype=response")


def record(kind: str, url: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def make_pdf(*texts: str) -> bytes:
    """A PDF with one page a text, and a table of where its objects begin."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(texts)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(texts)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(texts):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {5 + 2 * number} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>",
            f"<</Length {len(content)}>>\nstream\n{content}\nendstream",
        ]
    data, places = b"%PDF-1.4\n", []
    for number, value in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{value}\nendobj\n".encode()
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(
        f"{place:010} 00000 n \n" for place in places
    )
    return data + f"{table}trailer\n<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF".encode()
