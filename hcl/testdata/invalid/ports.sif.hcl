domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  contract "c" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports = [
        8080,
        70000,
        0,
        -1,
        80.5,
        1e300,
        "9010-9000",
        "80-70000",
        "http",
        "",
        true,
        [80],
        "8080",
      ]
    }
  }
}
