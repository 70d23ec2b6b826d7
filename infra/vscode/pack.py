"""The extension as a .vsix, which is a zip with two files of its own beside the sources: the same bytes every time.

python -m infra.vscode.pack [dumont-standby.vsix]
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

HERE = Path(__file__).parent
FILES = ("package.json", "README.md", "extension.js", "decide.js", "ask.js")
OLDEST = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip can hold."""

CONTENT_TYPES = """<?xml version="1.0" encoding="utf-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension=".json" ContentType="application/json"/>
<Default Extension=".js" ContentType="application/javascript"/>
<Default Extension=".md" ContentType="text/markdown"/>
<Default Extension=".vsixmanifest" ContentType="text/xml"/>
</Types>
"""


def manifest() -> str:
    """What the editor reads of a .vsix before it unpacks it, from package.json alone."""
    said = json.loads((HERE / "package.json").read_text())
    identity = (
        f"Id={quoteattr(said['name'])} Version={quoteattr(said['version'])} Publisher={quoteattr(said['publisher'])}"
    )
    properties = {
        "Microsoft.VisualStudio.Code.Engine": said["engines"]["vscode"],
        "Microsoft.VisualStudio.Code.ExtensionKind": ",".join(said["extensionKind"]),
    }
    lines = "".join(f"<Property Id={quoteattr(id)} Value={quoteattr(value)}/>" for id, value in properties.items())
    return f"""<?xml version="1.0" encoding="utf-8"?>
<PackageManifest Version="2.0.0" xmlns="http://schemas.microsoft.com/developer/vsx-schema/2011">
<Metadata><Identity Language="en-US" {identity}/>
<DisplayName>{escape(said["displayName"])}</DisplayName>
<Description xml:space="preserve">{escape(said["description"])}</Description>
<Categories>{escape(",".join(said["categories"]))}</Categories>
<Properties>{lines}</Properties></Metadata>
<Installation><InstallationTarget Id="Microsoft.VisualStudio.Code"/></Installation><Dependencies/>
<Assets>
<Asset Type="Microsoft.VisualStudio.Code.Manifest" Path="extension/package.json" Addressable="true"/>
<Asset Type="Microsoft.VisualStudio.Services.Content.Details" Path="extension/README.md" Addressable="true"/>
</Assets>
</PackageManifest>
"""


def pack() -> bytes:
    members = {"extension.vsixmanifest": manifest(), "[Content_Types].xml": CONTENT_TYPES}
    members |= {f"extension/{name}": (HERE / name).read_text() for name in FILES}
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as zipped:
        for name, text in members.items():
            member = zipfile.ZipInfo(name, OLDEST)
            member.create_system, member.external_attr = 3, 0o100644 << 16
            zipped.writestr(member, text)
    return raw.getvalue()


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "dumont-standby.vsix")
    target.write_bytes(pack())
    print(target)
