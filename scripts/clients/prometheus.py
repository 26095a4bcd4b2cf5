"""The parser of Prometheus' Python client, and promtool if it is installed. packages: prometheus_client"""

import os
import shutil
import subprocess
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

URL, KEY = os.environ["URL"], os.environ["KEY"]


def main():
    request = urllib.request.Request(URL.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {KEY}"})
    answer = urllib.request.urlopen(request)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers
    text = answer.read()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert all(family.documentation and family.type != "unknown" for family in families.values())
    for family in families.values():
        if family.type == "histogram":
            buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
            assert buckets == sorted(buckets) and buckets[-1] == count, family
    promtool = shutil.which("promtool")
    if promtool:
        # It prints what it finds fault with.
        checked = subprocess.run([promtool, "check", "metrics"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert checked.returncode == 0 and not checked.stdout, checked.stdout.decode()
    print(f"outcome: {len(families)} metrics{', and promtool agrees' if promtool else ''}")


main()
