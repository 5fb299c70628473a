knot port forward 8080 backend-api 3000
knot port list
knot port stop 8080
